"""The page about one trained model."""

from typing import Dict, List, Tuple

import numpy as np

from ...data.reader import image_reader
from ...diagnostics.detection_errors import KINDS
from ...evaluation.operating import IGNORED, RATES, SIZES, best_threshold, curve
from ...evaluation.report import judge_fit
from .charts import curve_charts, training_charts
from .html import Box, Raw, bar, facts, image, page, paragraph, rows_of, section, table, text
from .runs import Evaluated, Run

CHARTS = 100  # classes with charts of their own, at most: those with the most boxes
WHOLE_MATRIX = 20  # classes of a confusion matrix that is shown whole
PAIRS = 30  # of confused classes that are listed, at most
WRITTEN = 12  # wrong and missed boxes of an image whose names are written, at most

ADVICE = {
    "classification": "boxes are right and classes confused: see the confusion matrix, and look "
    "whether the labels of these classes are consistent",
    "localisation": "objects are found with boxes that do not fit: look whether annotated boxes "
    "are tight, fit the anchors (ssdlite fit-anchors), or enlarge INPUT.SIZE",
    "both": "class and box are wrong at once: the model has hardly learnt these objects",
    "duplicate": "objects are found twice: lower MODEL.SSD.POSTPROCESS.NMS_THRESH",
    "background": "something is found where nothing is annotated: look at the images below for "
    "objects without annotation, or add images without objects",
    "missed": "objects are not found: look at their sizes below; small ones need a larger "
    "INPUT.SIZE or other anchors, rare ones more images",
}


def write_page(run: Run, images: int) -> str:
    """
    Args:
        images: how many are shown at most, those with the most mistakes first.
    """
    test = run.test
    names = {"curves": "Training", "classes": "Classes", "confusion": "Confusion"}
    names.update(errors="Errors", images="Images", data="Data", speed="Speed and size", made="Made")
    sections = [
        section("curves", "Training", _training(run)),
        section("classes", "Classes", _overall(test), _class_table(test), *_class_charts(test)),
        section("confusion", "Which classes are confused", *_confusion(test)),
        section("errors", "What the errors are", *_errors(test)),
        section("images", "Images with the most mistakes", KEY, worst_images(run, images)),
        section("data", "Data", *_data(run)),
        section("speed", "Speed and size", facts(speed(run).items())),
        section("made", "How it was made", *made(run)),
    ]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in names.items())
    found = "".join(f"<li>{text(line)}</li>" for line in advice(run))
    top = facts(headline(test).items()) + f"<ul>{found}</ul><nav>{links}</nav>"
    return page(f"{run.place} on {test.dataset}", sections, top)


def headline(test: Evaluated) -> Dict[str, object]:
    """The results of all classes together."""
    box, point = test.results["bbox"], test.results["operating"]
    values = {name: box[name] for name in ("AP", "AP50", "AP75")}
    values.update({f"{name} %": point[name] for name in RATES})
    return {**values, "at scores above": f"{test.threshold:.3f}"}


def advice(run: Run) -> List[str]:
    """What stands out, in sentences."""
    test, lines = run.test, []
    costs = test.costs()
    worst = max(costs, key=costs.get)
    if costs[worst] >= 1:
        lines.append(
            f"The costliest errors are of the kind {worst}, {costs[worst]:.1f} points of "
            f"AP50: {ADVICE[worst]}."
        )
    pairs = confused_pairs(test)
    if pairs and pairs[0][3] >= 5:
        true, found, count, share = pairs[0]
        lines.append(f"{share:.0f} % of the objects {true} are found as {found} ({count}).")
    if run.on_train:
        both = (of.results["bbox"]["AP50"] for of in (run.on_train, test))
        lines.append(judge_fit(*both))
    train = next((run.data[n] for n in run.cfg.DATASETS.TRAIN if n in run.data), None)
    few = [c["class"] for c in train["classes"] if c["boxes"] < 50] if train else []
    if few:
        more = f" and {len(few) - 3} more classes" if len(few) > 3 else ""
        lines.append(f"Fewer than 50 boxes to train on: {', '.join(few[:3])}{more}.")
    return lines


def _training(run: Run) -> str:
    if not run.metrics:
        return paragraph("There is no metrics.json of a training.", "soft")
    return training_charts({run.place: run.metrics}, "Loss and AP over the iterations")


def _overall(test: Evaluated) -> str:
    judged = test.matched != IGNORED
    points = curve(test.found.scores[judged], test.matched[judged] >= 0, sum(~test.true.crowd))
    sizes = [
        (name, *(test.results["operating"][rate + end] for rate in RATES))
        for name, end in {"all": "", **{size: f"_{size}" for size in SIZES}}.items()
    ]
    return (
        paragraph(
            "A detection is right when it overlaps a box of its class by an IoU of at least 0.5. "
            f"Marked is the score {test.threshold:.3f}, where the F1 of all boxes together is best."
        )
        + curve_charts(points, test.threshold, "Precision and recall of all classes together")
        + table(["boxes", "precision %", "recall %", "F1 %"], sizes, "By size of the boxes")
    )


def class_rows(test: Evaluated) -> List[Dict[str, object]]:
    """Results of each class."""
    rows = []
    single = len(test.classes) == 1
    for i, name in enumerate(test.classes):
        end = "" if single else f"-{name}"
        box, point = test.results["bbox"], test.results["operating"]
        best = best_threshold(class_curve(test, i))
        rows.append(
            {
                "class": name,
                "boxes": int(((test.true.classes == i) & ~test.true.crowd).sum()),
                "AP": box.get(f"AP{end}"),
                "AP50": box.get(f"AP50{end}"),
                **{f"{rate} %": point.get(f"{rate}{end}") for rate in RATES},
                "best score": None if best is None else f"{best:.3f}",
            }
        )
    return rows


def class_curve(test: Evaluated, i: int):
    judged = (test.found.classes == i) & (test.matched != IGNORED)
    count = int(((test.true.classes == i) & ~test.true.crowd).sum())
    return curve(test.found.scores[judged], test.matched[judged] >= 0, count)


def _charted(test: Evaluated) -> List[int]:
    """Classes that get charts; a single one has those of all boxes."""
    if len(test.classes) == 1:
        return []
    counts = np.bincount(test.true.classes[~test.true.crowd], minlength=len(test.classes))
    return sorted(np.argsort(-counts, kind="stable")[:CHARTS].tolist())


def _class_table(test: Evaluated) -> str:
    charted, rows = set(_charted(test)), []
    for i, row in enumerate(class_rows(test)):
        name = text(row["class"])
        linked = Raw(f'<a href="#class{i}">{name}</a>') if i in charted else row["class"]
        rows.append([linked, *list(row.values())[1:]])
    return paragraph(
        "AP is COCO's; precision, recall and F1 are those at the score above; the best score is "
        "where the F1 of the class itself is best."
    ) + table(list(class_rows(test)[0]), rows, "Results by class", sortable=True)


def _class_charts(test: Evaluated) -> List[str]:
    few = " open" if len(test.classes) <= 6 else ""
    charts = []
    for i in _charted(test):
        of, name = class_curve(test, i), text(test.classes[i])
        drawn = curve_charts(of, best_threshold(of), f"Precision, recall and F1 of {name}")
        charts.append(f'<details id="class{i}"{few}><summary>{name}</summary>{drawn}</details>')
    return charts


def confused_pairs(test: Evaluated) -> List[Tuple[str, str, int, float]]:
    """(true class, class found, count, share in percent of the true class), the most first."""
    matrix, classes = test.confusion()[:-1], test.classes
    totals = matrix.sum(1)
    between = matrix[:, :-1] * ~np.eye(len(classes), dtype=bool)
    order = np.argsort(-between, axis=None, kind="stable")[:PAIRS]
    pairs = [(*divmod(int(at), len(classes)), int(between.flat[at])) for at in order]
    return [(classes[t], classes[f], n, 100 * n / totals[t]) for t, f, n in pairs if n]


def _confusion(test: Evaluated) -> List[str]:
    matrix = test.confusion()
    about = paragraph(
        "At the score above. A detection that finds a box of its class counts for it; the others "
        "take the free boxes of any class that they overlap by an IoU of at least 0.5."
    )
    if len(test.classes) > WHOLE_MATRIX:
        pairs = table(
            ["true class", "found as", "boxes", "% of the class"],
            confused_pairs(test),
            "Confused classes",
            sortable=True,
        )
        return [about, pairs]
    rows = []
    for name, counts in zip([*test.classes, "nothing"], matrix.tolist()):
        cells = "".join(
            f'<td style="--share:{0.75 * n / max(sum(counts), 1):.2f}">{n}</td>' for n in counts
        )
        rows.append(f'<tr><th scope="row">{text(name)}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{text(n)}</th>' for n in [*test.classes, "not found"])
    return [
        about,
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">'
        f'<table class="matrix"><thead><tr><th scope="col">true \\ found</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>",
    ]


def _errors(test: Evaluated) -> List[str]:
    costs, kinds = test.costs(), test.errors.kinds
    counts = {name: int((kinds == i).sum()) for i, name in enumerate(KINDS)}
    counts["missed"] = int(test.errors.missed.sum())
    shown = test.shown()
    above = {name: int((kinds[shown] == i).sum()) for i, name in enumerate(KINDS)}
    above["missed"] = None
    largest = max(costs.values())
    rows = [
        (name, meaning, counts[name], above[name], bar(costs[name], largest))
        for name, meaning in KINDS.items()
    ]
    heads = ["kind", "meaning", "all", "above the score", "costs, points of AP50"]
    return [
        table(heads, rows, "Kinds of errors"),
        paragraph(
            "The kinds are TIDE's (arXiv:2008.08115), of all detections whatever their score. What "
            "a kind costs is the AP50 gained if it alone were corrected. The costs do not add up "
            f"to what is missing: their sum is {sum(costs.values()):.1f}, and AP50 is "
            f"{test.results['bbox']['AP50']:.1f}, that is {100 - test.results['bbox']['AP50']:.1f} "
            "below 100.",
            "soft",
        ),
    ]


KEY = (
    '<p class="key"><span class="right">right</span><span class="wrong">wrong: class, score, kind '
    'of error</span><span class="missed">not found</span></p>'
)


def worst_images(run: Run, most: int) -> str:
    mistakes = run.test.mistakes()
    order = np.argsort(-mistakes, kind="stable")[:most]
    figures = [figure(run, int(i)) for i in order if mistakes[i]]
    return f'<div class="images">{"".join(figures)}</div>' if figures else paragraph("None.")


def figure(run: Run, i: int, title: str = "") -> str:
    """An image with what is right, wrong and not found above the threshold."""
    test = run.test
    names, shown, free = test.classes, test.shown(), test.not_found()
    kinds = list(KINDS)
    boxes = []
    for row in rows_of(test.found, i):
        if not shown[row]:
            continue
        words = f"{names[test.found.classes[row]]} {test.found.scores[row]:.2f}"
        if test.matched[row] >= 0:
            boxes.append(Box(test.found.boxes[row], "right", title=words))
        else:
            words += f" {kinds[test.errors.kinds[row]]}"
            boxes.append(Box(test.found.boxes[row], "wrong", words, words))
    for row in rows_of(test.true, i):
        if free[row]:
            name = names[test.true.classes[row]]
            boxes.append(Box(test.true.boxes[row], "missed", name, f"not found: {name}"))
    counts = [sum(box.outcome == kind for box in boxes) for kind in ("right", "wrong", "missed")]
    if sum(counts[1:]) > WRITTEN:  # of which the names would cover the image
        boxes = [Box(box.xywh, box.outcome, title=box.title) for box in boxes]
    file = test.records[i]["file_name"]
    words = "{} right, {} wrong, {} not found".format(*counts)
    caption = f"{title}{file.rsplit('/', 1)[-1]}: {words}"
    pixels = image_reader(run.cfg)(file, "BGR")
    return image(pixels, boxes, caption, caption)


def _data(run: Run) -> List[str]:
    if not run.data:
        return [paragraph("The data sets are not here.", "soft")]
    rows = [
        (name, d["images"], d["boxes"], d["boxes per image"]["median"], d["hash"])
        for name, d in run.data.items()
    ]
    parts = [table(["data set", "images", "boxes", "median per image", "hash"], rows, "Data sets")]
    for name, d in run.data.items():
        by_class = [
            (c["class"], c["boxes"], c["5 %"], c["median"], c["95 %"], _percent(c["matched"]))
            for c in d["classes"]
        ]
        heads = ["class", "boxes", "5 %", "median size", "95 %", "matched %"]
        shown = " open" if len(by_class) <= WHOLE_MATRIX else ""
        inner = table(heads, by_class, f"Classes of {name}", sortable=True)
        parts.append(f"<details{shown}><summary>{text(name)}: classes</summary>{inner}</details>")
    parts.append(
        paragraph(
            "Sizes are square roots of areas in pixels of the network input; matched are the boxes "
            "that an anchor overlaps by MODEL.SSD.ASSIGNER.IOU_THRESHOLD.",
            "soft",
        )
    )
    return parts


def _percent(share) -> object:
    return None if share is None else 100.0 * share


def speed(run: Run) -> Dict[str, object]:
    size = run.size
    values = {
        "ms per image": run.test.milliseconds,
        "parameters": f"{size['parameters'] / 1e6:.2f} M",
        "multiply-adds": f"{size['madds'] / 1e9:.2f} G",
        "input": " x ".join(map(str, run.cfg.INPUT.SIZE)),
    }
    if "file" in size:
        values["file"] = f"{size['file'] / 1e6:.1f} MB"
    return {**values, "measured on": run.made["measured on"]}


def made(run: Run) -> List[str]:
    return [
        table(["", ""], run.made.items(), "How it was made"),
        paragraph(
            "The hash of a data set is of the names, sizes in bytes and boxes of its images.",
            "soft",
        ),
        f"<details><summary>The whole config</summary><pre>{text(run.cfg.dump())}</pre></details>",
    ]
