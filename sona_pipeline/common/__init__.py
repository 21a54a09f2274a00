"""What every wing uses: files, progress bars, figures, stages that overlap."""
