"""Check the goldens, and compare another implementation against one of them.

    python verify.py                 # self-check of every golden (numpy only)
    python verify.py A.npz B.npz     # two generations of one golden: bit-identical? max relative difference?

    from verify import load, compare
    g = load("houqb__mobilenet_v2_ssd320_coco")
    compare(g, cls=..., loc=..., priors=..., boxes=..., scores=..., labels=..., loss=...)

The self-check is independent of torch and of both references: it refills every
tensor and compares its CRC, rebuilds the network input from the stored resized
image, rebuilds the priors from the parameters in `facts`, and redoes the
target matching. It therefore also states in code what those steps are.
"""
import itertools
import json
import math
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import fill as fillmod  # noqa: E402


def load(name):
    path = name if name.endswith(".npz") else os.path.join(HERE, name + ".npz")
    with np.load(path, allow_pickle=False) as z:
        g = {k: z[k] for k in z.files}
    g["meta"] = json.loads(str(g.pop("meta_json")))
    g["entries"] = json.loads(str(g.pop("entries_json")))
    g["grad_names"] = json.loads(str(g.pop("grad_names_json")))
    return g


def weights(g):
    """name -> ndarray, exactly what the reference network was loaded with."""
    return fillmod.fill([e[:3] for e in g["entries"]], g["meta"]["params"])


def network_input(g, key="input_u8"):
    """(1, 3, S, S) float32 from the stored resized uint8 image."""
    f = g["meta"]["facts"]
    x = g[key].astype(np.float32) - np.array(f["mean"], np.float32)
    if f["std"] != [1.0, 1.0, 1.0]:
        x = x / np.array(f["std"], np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1))[None]


def make_priors(f):
    """(N, 4) cx, cy, w, h relative to the image; order: level, row, column, shape."""
    a, size, out = f["anchors"], f["image_size"], []
    for k, fm in enumerate(a["feature_maps"]):
        cells = size / a["strides"][k]
        s, big = a["min_sizes"][k] / size, math.sqrt(a["min_sizes"][k] * a["max_sizes"][k]) / size
        shapes = [(s, s), (big, big)]
        for r in a["aspect_ratios"][k]:
            q = math.sqrt(r)
            shapes += [(s * q, s / q), (s / q, s * q)]
        for i, j in itertools.product(range(fm), repeat=2):
            out += [((j + 0.5) / cells, (i + 0.5) / cells, w, h) for w, h in shapes]
    p = np.array(out, np.float64).astype(np.float32)
    return np.clip(p, 0, 1) if a["clip"] else p


def match(priors, boxes, labels, threshold, variances):
    """boxes relative x1,y1,x2,y2. Returns (label per prior, encoded location per prior), float32."""
    c = np.concatenate([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)
    lt = np.maximum(c[:, None, :2], boxes[None, :, :2])
    rb = np.minimum(c[:, None, 2:], boxes[None, :, 2:])
    inter = np.clip(rb - lt, 0, None).prod(2)
    area_c = np.clip(c[:, 2:] - c[:, :2], 0, None).prod(1)
    area_b = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1)
    iou = inter / (area_b[None] + area_c[:, None] - inter + np.float32(1e-5))
    best, arg = iou.max(1), iou.argmax(1)
    for t, p in enumerate(iou.argmax(0)):        # in order: a later ground truth wins a shared prior
        arg[p], best[p] = t, 2.0
    lab = np.where(best < threshold, 0, labels[arg])
    b = boxes[arg]
    ctr, wh = (b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]
    loc = np.concatenate([(ctr - priors[:, :2]) / priors[:, 2:] / np.float32(variances[0]),
                          np.log(wh / priors[:, 2:]) / np.float32(variances[1])], 1)
    return lab, loc


def _rel(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        return float("inf")
    if a.size == 0:
        return 0.0
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))


def compare(g, cls=None, loc=None, priors=None, boxes=None, scores=None, labels=None, loss=None, loss_key="loss_eval"):
    """Report dict; every difference is max|a-b| / max|golden|. cls (N,C), loc (N,4): image 0, batch 1."""
    r, k = {}, g["meta"]["strides"]["anchors"]
    if cls is not None:
        r["cls"] = _rel(np.asarray(cls).reshape(-1, np.asarray(cls).shape[-1])[::k], g["cls_sample"])
        r["cls_sum"] = abs(float(np.asarray(cls, np.float64).sum()) - g["cls_stats"][0]) / g["cls_stats"][1]
    if loc is not None:
        r["loc"] = _rel(np.asarray(loc).reshape(-1, 4)[::k], g["loc_sample"])
        r["loc_sum"] = abs(float(np.asarray(loc, np.float64).sum()) - g["loc_stats"][0]) / g["loc_stats"][1]
    if priors is not None:
        r["priors"] = _rel(priors, g["priors"])
    if boxes is not None:
        B, S, L = g["det_boxes"], g["det_scores"], g["det_labels"]
        boxes, scores, labels = np.asarray(boxes), np.asarray(scores), np.asarray(labels)
        r["count"] = [len(boxes), len(B)]
        free, worst_box, worst_score, missing = set(range(len(boxes))), 0.0, 0.0, 0
        for b, s, l in zip(B, S, L):
            c = [i for i in free if labels[i] == l]
            if not c:
                missing += 1
                continue
            i = min(c, key=lambda n: np.abs(boxes[n] - b).max())
            if np.abs(boxes[i] - b).max() > 1.0:
                missing += 1
                continue
            free.discard(i)
            worst_box = max(worst_box, float(np.abs(boxes[i] - b).max()))
            worst_score = max(worst_score, float(abs(scores[i] - s)))
        r.update(missing=missing, extra=len(free), worst_box_px=worst_box, worst_score=worst_score)
    if loss is not None:
        r["loss"] = _rel(loss, g[loss_key])
    return r


def selfcheck(name):
    g, bad = load(name), []
    m, f = g["meta"], g["meta"]["facts"]

    def need(ok, what):
        if not ok:
            bad.append(what)
    need(os.path.getsize(os.path.join(HERE, name + ".npz")) < 3e6, "size")
    w = weights(g)
    need(all(fillmod.crc(w[n]) == c and list(w[n].shape) == s and str(w[n].dtype) == d for n, s, d, c in g["entries"]), "weights")
    need(all(np.isfinite(v).all() for v in g.values() if isinstance(v, np.ndarray) and v.dtype.kind == "f"), "finite")
    x = network_input(g)
    need(fillmod.crc(x) == int(g["input_crc32"]), "input tensor")
    need(np.array_equal(x.reshape(-1)[::997], g["input_sample"]), "input sample")
    need(fillmod.crc(network_input(g, "input1_u8")) == int(g["input1_crc32"]), "input tensor 1")
    need([fillmod.crc(fillmod.make_test_image(i)) for i in (0, 1)] == m["image_crc32"], "test images")
    need(_rel(make_priors(f), g["priors"]) < 1e-6, "priors")
    worst = 0.0
    for i, (b, l) in enumerate(fillmod.make_test_targets(f["num_classes_in_config"])):
        need(np.array_equal(b, g["gt%d_boxes" % i]) and np.array_equal(l, g["gt%d_labels" % i]), "gt%d" % i)
        h, wd = m["image_sizes_hw"][i]
        lab, loc = match(g["priors"], b / np.array([wd, h, wd, h], np.float32), l, f["match_iou"], f["variances"])
        need(np.array_equal(lab, g["match%d_labels" % i]), "matched labels %d" % i)
        need(np.array_equal(np.flatnonzero(lab > 0), g["match%d_pos" % i]), "positives %d" % i)
        worst = max(worst, _rel(loc[lab > 0], g["match%d_locs" % i]))
    b, l = fillmod.tiny_target()
    h, wd = m["image_sizes_hw"][1]
    lab, _ = match(g["priors"], b / np.array([wd, h, wd, h], np.float32), l, f["match_iou"], f["variances"])
    for who, v in (("reference", g["tiny_labels"]), ("here", lab)):   # which of the tied priors is free
        hit = np.flatnonzero(v > 0)
        need(len(hit) == 1 and hit[0] in g["tiny_tied"] and v[hit[0]] == l[0], "tiny box, " + who)
    need(worst < 1e-5, "encoded locations %g" % worst)
    need(20 <= len(g["det_boxes"]) <= 100 and (np.diff(g["det_scores"]) <= 0).all(), "detections")
    scale = np.array([m["image_sizes_hw"][0][1], m["image_sizes_hw"][0][0]] * 2) / f["image_size"]
    need(_rel(g["det_boxes_net"] * scale, g["det_boxes"]) < 1e-6, "box scale")
    need(_rel(g["loss_eval"], g["loss_eval_f64"]) < 1e-5, "loss float32 against float64")
    return bad


def main(argv):
    if len(argv) == 2:
        a, b, worst, same = load(argv[0]), load(argv[1]), 0.0, True
        for k in sorted(set(a) | set(b)):
            if k in ("meta", "entries", "grad_names"):
                x = {n: v for n, v in a[k].items()} if k == "meta" else a[k]
                y = {n: v for n, v in b[k].items()} if k == "meta" else b[k]
                if x != y:
                    same = False
                    print(k, "differs:", [n for n in x if x[n] != y.get(n)] if k == "meta" else "")
            elif k not in a or k not in b or a[k].shape != b[k].shape:
                same, worst = False, float("inf")
                print(k, "missing or reshaped")
            elif not np.array_equal(a[k], b[k]):
                same = False
                worst = max(worst, _rel(a[k], b[k]))
                print(k, _rel(a[k], b[k]))
        print("bit-identical" if same else "max relative difference %g" % worst)
        return 0 if worst <= 1e-5 else 1
    names = sorted(n[:-4] for n in os.listdir(HERE) if n.endswith(".npz") and not n.startswith("float64"))
    failures = 0
    for n in names:
        bad = selfcheck(n)
        failures += bool(bad)
        print("%-46s %s" % (n, "ok" if not bad else "FAILED: " + ", ".join(bad)))
    return 1 if failures or not names else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
