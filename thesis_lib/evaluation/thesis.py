"""What the thesis measured, as tables."""

import pandas as pd

from thesis_lib.core import paths

STAGES = ("extraction", "embedding", "search", "score")
NETWORKS = {"ResNet18": "resnet18", "ResNet34": "resnet34", "WideResNet50": "wide_resnet50_2",
            "ConvNeXt-XS": "convnext_tiny", "ConvNeXt-S": "convnext_small", "ConvNeXt-M": "convnext_base",
            "ConvNeXt-L": "convnext_large", "PDN-S": "pdn_small", "PDN-M": "pdn_medium"}
TIMED_NETWORKS = ("ResNet18", "ResNet34", "WideResNet50")           # of Table 2.4


def bars_of(figure: str) -> pd.DataFrame:
    """Bars of one figure of the thesis ("3.2"), in its order: AUROC in %, times in ms. KeyError lists the figures."""
    bars = pd.read_csv(paths.reference() / "thesis_results.csv", dtype={"figure": str, "bank": str})
    if figure not in set(bars["figure"]):
        known = ", ".join(sorted(bars["figure"].unique(), key=lambda name: [int(part) for part in name.split(".")]))
        raise KeyError(f"figure {figure!r} has no bars; there are {known}")
    return bars[bars["figure"] == figure].reset_index(drop=True)


def mvtec_pictures() -> dict[str, tuple[int, int]]:
    """Category -> training and test pictures of MVTec AD (Table 2.1)."""
    table = pd.read_csv(paths.reference() / "thesis_table_2_1.csv").set_index("category_en").iloc[:-1]      # no total
    train, good, bad = (table[name].astype(int) for name in ("n_train", "n_test_nominal", "n_test_anomalous"))
    return dict(zip(table.index, zip(train, good + bad, strict=True), strict=True))


def network_times() -> pd.DataFrame:
    """Milliseconds of whole networks at 224 pixels (Table 2.4), one column per machine of the thesis."""
    table = pd.read_csv(paths.reference() / "thesis_table_2_4.csv").set_index("network")
    return table.loc[list(TIMED_NETWORKS), ["raspberry_pi_4b_ms", "ryzen_5600x_ms", "rtx_3060ti_ms"]].astype(float)
