"""The page of `sona demo`, also laid out as a Space of the Hub."""
