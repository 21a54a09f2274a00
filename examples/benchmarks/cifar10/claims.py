"""What the systems of a table claim for themselves, and what SONA's paper found for them, beside what we found."""

from pathlib import Path

import pandas as pd
from outcome import Column, Part, means_of

from sona_pipeline import with_spread

PAPER = Path(__file__).parent.parent / "paper"
TABLES = ("1", "3", "8", "9")
"""Of the paper, those that compare systems on ImageNet-200; a figure is taken from the first that has it."""
GROUPS = {"near_ood": "near-OOD", "far_ood": "far-OOD"}
NOTE = """Other data and networks everywhere, so that no two figures of a row can be set against each other: ours are of
few images of 32 px with a small network, SONA's paper has ImageNet-200 with ResNet-18 at 224 px, and the set-up of a
claim is in the last column. AUROC in %."""


def describe_claims(found: pd.DataFrame) -> Part:
    """A row a system of which somebody else has figures, by the results on test images."""
    claims = _indexed(pd.read_csv(PAPER / "claims.csv", keep_default_na=False), "system")
    figures = pd.read_csv(PAPER / "figures.csv", dtype={"table": str})
    figures = _indexed(figures[figures["table"].isin(TABLES)].sort_values("table", kind="stable"), "row")
    ours = {
        (row.group, row.method): with_spread(row.mean, row.std)
        for group in GROUPS
        for row in means_of(found, Column("test", group, "auroc")).itertuples()
    }
    rows = []
    for method in found["method"].unique():
        system = method.removesuffix(", real outliers").casefold()
        if system not in claims.index and system not in figures.index:
            continue
        claim = claims.loc[system] if system in claims.index else dict.fromkeys(claims.columns, "-")
        line = {"row": method, "its own claim": claim["claim"], "source": claim["source"]}
        for group, column in GROUPS.items():
            own = figures[(figures.index == system) & (figures["column"] == column)]
            line[f"{column}, SONA's paper"] = f"{own['value'].iloc[0]:.2f}" if len(own) else "-"
            line[f"{column}, ours"] = ours[group, method]
        rows.append(line | {"set-up of the claim": claim["setup"]})
    return Part("What the systems claim", NOTE, pd.DataFrame(rows), "claims.csv")


def _indexed(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Rows by the name of a system in small letters, as it is spelled in more than one way."""
    return table.set_index(table[column].str.casefold())
