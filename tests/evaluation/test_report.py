import json

import pytest

from ssdlite_d2.evaluation import merge_results, report_results


@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: {"one": r, "two": r}])
def test_results_of_the_average_get_their_own_task(wrap):
    merged = merge_results(wrap({"bbox": {"AP": 1.0}}), wrap({"bbox": {"AP": 2.0}}))
    assert merged == wrap({"bbox": {"AP": 1.0}, "bbox_EMA": {"AP": 2.0}})


def test_json_has_every_number_and_null_for_what_cannot_be_computed(tmp_path):
    results = {"bbox": {"AP": 1.5, "APs": float("nan"), "AP-cat": 2.5}}
    report_results(results, ["pets"], str(tmp_path / "inference"))
    saved = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert saved == {"pets": {"bbox": {"AP": 1.5, "APs": None, "AP-cat": 2.5}}}


def test_tables_have_a_row_per_task_size_and_class(tmp_path, caplog):
    rates = {name: 60.0 + i for i, name in enumerate(("precision", "recall", "F1"))}
    sized = {f"{k}_{size}": v for k, v in rates.items() for size in ("small", "medium", "large")}
    operating = {"threshold": 0.25, **rates, **sized, "precision-T-shirt": 7.0}
    results = {"bbox": {"AP": 1.5, "AP-T-shirt": 2.5}, "operating": operating}
    results["bbox_EMA"] = {"AP": 3.5, "AP-T-shirt": 4.5, "AP50-T-shirt": 5.5}
    with caplog.at_level("INFO"):
        report_results(results, ["pets"], str(tmp_path))
    rows = [line.replace(" ", "") for line in caplog.text.splitlines()]
    for row in ("|bbox|1.50|", "|bbox_EMA|3.50|", "|T-shirt|2.50|7.00|", "|T-shirt|4.50|5.50|"):
        assert row in rows
    for row in ("Atscoresabove0.250:", "|all|60.00|61.00|62.00|", "|small|60.00|61.00|62.00|"):
        assert row in rows
