// Detects objects in a browser with the ONNX model of this folder. In a page of your own:
//
//   import { Detector } from "./detect.js";
//   const detector = await Detector.open();
//   const { detections } = await detector.detect(image);  // a bitmap, canvas, video or ImageData
//
// Preparation and suppression are those of detector.py.

const MOST_PIXELS = 1e8; // of an image, as in predict.py
const GRABBED = 2 ** 22; // pixels that are copied at once
const RESAMPLING = ["half_pixel", "asymmetric", "opencv"];
const USUAL_THRESHOLD = 0.3; // where model.json has none

/** Rows of an image as RGBA: a function from a row to [bytes, where the row begins in them]. */
export function rowsOf(source, width, height) {
  if (source.data) return (y) => [source.data, 4 * width * y];
  const count = Math.min(height, Math.max(2, Math.floor(GRABBED / width)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height: count });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let data = null;
  let first = 0;
  return (y) => {
    if (!data || y < first || y >= first + count) {
      first = Math.min(y, height - count);
      context.clearRect(0, 0, width, count);
      context.drawImage(source, 0, first, width, count, 0, 0, width, count);
      data = context.getImageData(0, 0, width, count).data;
    }
    return [data, 4 * width * (y - first)];
  };
}

/** To the nearest whole number, halves to the even one, as OpenCV rounds. */
function round(value) {
  const up = Math.round(value);
  return up - value === 0.5 && up % 2 ? up - 1 : up;
}

/** For each of `to` pixels the two of `from` that it lies between, and the second one's weight. */
function taps(from, to, halfPixel) {
  const inside = (i) => Math.min(Math.max(i, 0), from - 1);
  const [low, high, weights] = [new Int32Array(to), new Int32Array(to), new Float32Array(to)];
  const scale = from / to;
  for (let i = 0; i < to; i++) {
    const at = Math.fround(halfPixel ? (i + 0.5) * scale - 0.5 : i * Math.fround(scale));
    low[i] = inside(Math.floor(at));
    high[i] = inside(Math.floor(at) + 1);
    // OpenCV's resize has weights of 11 bits, its warpAffine has floats
    weights[i] = halfPixel ? round((at - Math.floor(at)) * 2048) : at - Math.floor(at);
  }
  return { low, high, weights };
}

/**
 * An image stretched to [height, width], bilinear without antialias, with OpenCV's rounding.
 *
 * @param rows see rowsOf.
 * @param method "half_pixel" or "opencv", as cv2.resize, or "asymmetric", as TensorFlow 1.
 * @returns Uint8Array RGB, height x width x 3.
 */
export function resize(rows, width, height, [newHeight, newWidth], method) {
  if (!RESAMPLING.includes(method)) throw new Error(`there is no resampling ${method}`);
  const halfPixel = method !== "asymmetric";
  const columns = taps(width, newWidth, halfPixel);
  const lines = taps(height, newHeight, halfPixel);
  const result = new Uint8ClampedArray(newHeight * newWidth * 3); // halves go to the even number
  const stretched = (y) => {
    const line = halfPixel ? new Int32Array(newWidth * 3) : new Float32Array(newWidth * 3);
    const [data, start] = rows(y);
    for (let x = 0, at = 0; x < newWidth; x++) {
      const low = start + 4 * columns.low[x];
      const high = start + 4 * columns.high[x];
      const weight = columns.weights[x];
      for (let c = 0; c < 3; c++, at++) {
        const a = data[low + c];
        const b = data[high + c];
        line[at] = halfPixel ? (a * (2048 - weight) + b * weight) >> 4 : a + weight * (b - a);
      }
    }
    return line;
  };
  let [low, high, above, below] = [-1, -1];
  for (let y = 0, at = 0; y < newHeight; y++) {
    above = lines.low[y] === low ? above : lines.low[y] === high ? below : stretched(lines.low[y]);
    below = lines.high[y] === high ? below : stretched(lines.high[y]);
    [low, high] = [lines.low[y], lines.high[y]];
    const weight = lines.weights[y];
    for (let i = 0; i < above.length; i++, at++) {
      const a = above[i];
      const b = below[i];
      result[at] = halfPixel
        ? ((((2048 - weight) * a) >> 16) + ((weight * b) >> 16) + 2) >> 2
        : Math.fround(a + weight * (b - a));
    }
  }
  return new Uint8Array(result.buffer);
}

function area([x0, y0, x1, y1]) {
  return Math.max(0, x1 - x0) * Math.max(0, y1 - y0);
}

function overlap(a, b) {
  const both = area([0, 1, 2, 3].map((i) => (i < 2 ? Math.max : Math.min)(a[i], b[i])));
  return both / (area(a) + area(b) - both);
}

function clip([x0, y0, x1, y1], [height, width]) {
  const cut = (value, most) => Math.min(Math.max(value, 0), most);
  return [cut(x0, width), cut(y0, height), cut(x1, width), cut(y1, height)];
}

/**
 * The detections among all boxes (R x 4) and scores (R x K), best first.
 *
 * @param size [height, width] that the boxes are in.
 * @param options "detections" of model.json.
 * @returns list of {box: [x0, y0, x1, y1], score, id}; id is the class.
 */
export function select(boxes, scores, size, options) {
  const classes = scores.length / (boxes.length / 4);
  const least = Math.fround(options.score_threshold);
  let pairs = [];
  for (let i = 0; i < scores.length; i++) if (scores[i] > least) pairs.push(i);
  pairs.sort((a, b) => scores[b] - scores[a] || a - b);
  if (options.candidates_per_class) {
    const seen = new Array(classes).fill(0);
    pairs = pairs.filter((pair) => seen[pair % classes]++ < options.candidates_per_class);
  }
  const kept = [];
  const groups = options.across_classes ? 1 : classes;
  const keptOf = Array.from({ length: groups }, () => []); // boxes that suppress each other
  let empty = false; // OpenCV keeps the first box without area, and no other
  for (const pair of pairs.slice(0, options.candidates)) {
    if (kept.length === options.max_detections) break;
    const id = pair % classes;
    const anchor = 4 * Math.floor(pair / classes);
    let box = Array.from(boxes.subarray(anchor, anchor + 4));
    if (options.clip_before_nms) box = clip(box, size);
    const hasArea = area(box) > 0;
    if (!hasArea && empty) continue;
    empty ||= !hasArea;
    const others = keptOf[id % groups];
    if (others.some((other) => overlap(box, other) > options.nms_threshold)) continue;
    others.push(box);
    kept.push({ box, score: scores[pair], id });
  }
  return kept;
}

/** Detections from one [height, width] to another; those without area are dropped. */
export function fit(detections, size, imageSize) {
  const ratios = [1, 0, 1, 0].map((i) => imageSize[i] / size[i]);
  return detections
    .map((one) => ({ ...one, box: clip(one.box.map((v, i) => v * ratios[i]), imageSize) }))
    .filter(({ box: [x0, y0, x1, y1] }) => x1 > x0 && y1 > y0);
}

/** [red, green, blue] of a class, the colour that predict.py draws it in. */
export function colourOf(id) {
  const hue = 6 * ((id * 0.618034) % 1);
  return [5, 3, 1].map((n) => {
    const k = (n + hue) % 6;
    return Math.round(255 * 0.95 * (1 - 0.85 * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}

/** A file of this server or of the CDN, whose digest is that of model.json. */
async function download(url, integrity) {
  const name = String(url).split("/").pop();
  let answer;
  try {
    answer = await fetch(url, { integrity });
  } catch {
    throw new Error(`${name} cannot be loaded, or is not the file that belongs here`);
  }
  if (!answer.ok) throw new Error(`${name} cannot be loaded: ${answer.status}`);
  return answer;
}

async function asModule(file) {
  return URL.createObjectURL(new Blob([await file.arrayBuffer()], { type: "text/javascript" }));
}

/** onnxruntime-web for a device, "wasm" or "webgpu". */
async function openRuntime({ address, devices, integrity }, base, device, threads) {
  const get = (name) => download(new URL(name, new URL(address, base)), integrity[name]);
  const [main, glue, wasm] = await Promise.all(devices[device].map(get));
  const ort = await import(await asModule(main));
  ort.env.wasm.wasmPaths = { mjs: await asModule(glue) };
  ort.env.wasm.wasmBinary = await wasm.arrayBuffer();
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  return ort;
}

/** The model of a bundle. */
export class Detector {
  /**
   * @param base address of the bundle's folder.
   * @param device "wasm", "webgpu", or "auto": WebGPU where there is one.
   * @param threads of WASM; more than 1 need a page that is isolated (serve.py makes it so).
   */
  static async open({ base = import.meta.url, device = "auto", threads = 0 } = {}) {
    const spec = await (await download(new URL("model.json", base))).json();
    const digest = spec.sha256[spec.file].match(/../g).map((pair) => parseInt(pair, 16));
    const integrity = "sha256-" + btoa(String.fromCharCode(...digest));
    const file = await download(new URL(spec.file, base), integrity);
    const model = new Uint8Array(await file.arrayBuffer());
    const most = self.crossOriginIsolated ? navigator.hardwareConcurrency || 1 : 1;
    threads = threads > 0 ? Math.min(threads, most) : Math.min(most, 4);
    if (device === "auto") {
      const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
      if (adapter) {
        try {
          return await new Detector(spec).start(model, base, "webgpu", threads);
        } catch (error) {
          console.warn("WebGPU does not run this model", error);
        }
      }
      device = "wasm";
    }
    return new Detector(spec).start(model, base, device, threads);
  }

  constructor(spec) {
    this.spec = spec;
    this.classes = spec.classes;
    this.size = spec.input.size; // [H, W]
    // above which detections are shown: that of the best F1 at the last evaluation
    this.threshold = spec.operating?.threshold ?? USUAL_THRESHOLD;
  }

  async start(model, base, device, threads) {
    if (!this.spec.runtime.devices[device]) throw new Error(`there is no device ${device}`);
    this.ort = await openRuntime(this.spec.runtime, base, device, threads);
    const executionProviders = device === "webgpu" ? ["webgpu", "wasm"] : ["wasm"];
    this.session = await this.ort.InferenceSession.create(model, { executionProviders });
    this.device = device;
    this.threads = threads;
    const [height, width] = this.size;
    await this.detect(new ImageData(width, height)); // what is made at the first run is made now
    return this;
  }

  /**
   * @returns {detections: list of {box: [x0, y0, x1, y1] in pixels of the image, score, id, label},
   *   best first, milliseconds: {prepare, network, select}, width, height}
   */
  async detect(source) {
    const width = source.videoWidth || source.width;
    const height = source.videoHeight || source.height;
    if (!width || !height) throw new Error("the image is empty");
    if (width * height > MOST_PIXELS) throw new Error(`the image has ${width} x ${height} pixels`);
    const begin = performance.now();
    const rows = rowsOf(source, width, height);
    const pixels = resize(rows, width, height, this.size, this.spec.input.resampling);
    const prepared = performance.now();
    const input = new this.ort.Tensor("uint8", pixels, [1, ...this.size, 3]);
    const outputs = await this.session.run({ [this.session.inputNames[0]]: input });
    const [boxes, scores] = this.session.outputNames.map((name) => outputs[name].data);
    const computed = performance.now();
    const selected = select(boxes, scores, this.size, this.spec.detections);
    const detections = fit(selected, this.size, [height, width]);
    for (const one of detections) one.label = this.classes[one.id];
    const end = performance.now();
    const milliseconds = {
      prepare: prepared - begin, network: computed - prepared, select: end - computed,
    };
    return { detections, milliseconds, width, height };
  }
}

// ---- The page. Texts are set as text, never as HTML. ----

const SPOKEN = 2000; // milliseconds between two reports of the camera's detections

class Page {
  constructor() {
    const names = ["about", "camera", "error", "example", "file", "found", "hint", "least",
      "results", "speed", "stage", "status", "threshold", "view"];
    for (const name of names) this[name] = document.getElementById(name);
    this.shown = null; // {source, detections, milliseconds, width, height}
    this.stream = null;
    this.told = 0;
    this.turn = 0; // of the image that was asked for last
  }

  async start() {
    const asked = new URLSearchParams(location.search);
    const options = { device: asked.get("device") || "auto", threads: asked.get("threads") | 0 };
    this.status.textContent = "Loading the model…";
    this.detector = await Detector.open(options);
    const { spec, size, classes, device, threads } = this.detector;
    this.runs = device === "webgpu" ? "WebGPU" : `WASM, ${threads} thread${threads > 1 ? "s" : ""}`;
    const names = classes.length > 6 ? `${classes.length} classes` : classes.join(", ");
    this.about.textContent =
      `Finds: ${names}. The network sees ${size[1]} × ${size[0]} pixels. Images stay on this device.`;
    this.threshold.min = Math.max(0.01, spec.detections.score_threshold).toFixed(2);
    this.setLimit(this.detector.threshold);
    this.threshold.value = this.limit;
    this.exampleFile = spec.files.find((name) => /^example\.(jpe?g|png|bmp|webp)$/.test(name));
    this.example.hidden = !this.exampleFile;
    for (const control of [this.file, this.camera, this.threshold]) control.disabled = false;
    this.listen();
    this.status.textContent = "Ready.";
  }

  listen() {
    const open = (blob) => blob && this.attempt(() => this.openImage(blob));
    this.file.onchange = () => {
      open(this.file.files[0]);
      this.file.value = ""; // the same file may be chosen again
    };
    this.example.onclick = () => this.attempt(async () => {
      const file = await download(new URL(this.exampleFile, import.meta.url));
      await this.openImage(await file.blob());
    });
    this.camera.onclick = () => this.attempt(() => (this.stream ? this.stop() : this.watch()));
    this.threshold.oninput = () => {
      this.setLimit(Number(this.threshold.value));
      this.show();
    };
    document.onpaste = (event) => open(event.clipboardData.files[0]);
    document.ondragover = (event) => {
      event.preventDefault();
      this.stage.classList.add("over");
    };
    document.ondragleave = () => this.stage.classList.remove("over");
    document.ondrop = (event) => {
      event.preventDefault();
      this.stage.classList.remove("over");
      open(event.dataTransfer.files[0]);
    };
    window.onresize = () => this.show();
  }

  /** Show the detections above a score, which the slider may have between two of its steps. */
  setLimit(score) {
    this.limit = score;
    this.least.textContent = score.toFixed(2);
  }

  /** Do something; what goes wrong is said in one line. */
  async attempt(action) {
    this.error.textContent = "";
    try {
      await action();
    } catch (error) {
      this.error.textContent = `Error: ${error.message || error}`;
      this.status.textContent = "";
    }
  }

  async openImage(blob) {
    this.stop();
    const turn = ++this.turn;
    this.status.textContent = "Detecting…";
    let image;
    try {
      image = await createImageBitmap(blob, { colorSpaceConversion: "none" });
    } catch {
      throw new Error(`${blob.name || "the file"} cannot be read as an image`);
    }
    const result = await this.detector.detect(image);
    if (turn === this.turn) this.show({ source: image, ...result });
  }

  async watch() {
    if (!navigator.mediaDevices) throw new Error("the camera needs https or localhost");
    const turn = ++this.turn;
    let stream;
    try {
      const video = { facingMode: "environment", width: { ideal: 1280 } };
      stream = await navigator.mediaDevices.getUserMedia({ video });
    } catch (error) {
      throw new Error(`the camera cannot be opened: ${error.message || error.name}`);
    }
    const stopped = () => turn !== this.turn || !stream.active;
    if (stopped()) return stream.getTracks().forEach((track) => track.stop());
    this.stream = stream;
    this.setCamera(true);
    const video = Object.assign(document.createElement("video"), {
      srcObject: stream, muted: true, playsInline: true,
    });
    try {
      await video.play();
      while (!stopped()) {
        const result = await this.detector.detect(video);
        if (!stopped()) this.show({ source: video, ...result });
        await new Promise(requestAnimationFrame); // none come while the page is hidden
      }
    } finally {
      if (this.stream === stream) this.stop();
    }
  }

  stop() {
    this.turn++;
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    this.setCamera(false);
  }

  setCamera(on) {
    this.camera.setAttribute("aria-pressed", on);
    this.camera.textContent = on ? "Stop camera" : "Camera";
  }

  /** Draw an image, or the last one again, with the detections above the threshold. */
  show(result = this.shown) {
    if (!result) return;
    this.shown = result;
    const good = result.detections.filter(({ score }) => score > Math.fround(this.limit));
    this.stage.classList.add("filled");
    this.hint.hidden = true;
    this.view.hidden = this.results.hidden = false;
    this.draw(result, good);
    this.found.replaceChildren(...good.map((one) => this.entry(one)));
    const { prepare, network, select } = result.milliseconds;
    const parts = `image ${prepare.toFixed(1)}, network ${network.toFixed(1)}, boxes ${select.toFixed(1)}`;
    const all = (prepare + network + select).toFixed(0);
    this.speed.textContent = `${all} ms (${parts}) · ${this.runs}`;
    if (this.stream && performance.now() - this.told < SPOKEN) return;
    this.told = performance.now();
    this.status.textContent = this.view.ariaLabel = this.summary(good);
  }

  summary(detections) {
    const counts = new Map();
    for (const { label } of detections) counts.set(label, (counts.get(label) || 0) + 1);
    const all = [...counts].map(([label, count]) => `${count} ${label}`).join(", ");
    return all ? `Found ${all}.` : "Nothing found above the threshold.";
  }

  entry({ id, label, score }) {
    const entry = document.createElement("li");
    const [swatch, name, number] = ["i", "b", "span"].map((tag) => document.createElement(tag));
    swatch.style.background = `rgb(${colourOf(id)})`;
    name.textContent = label;
    number.textContent = score.toFixed(2);
    entry.append(swatch, name, number);
    return entry;
  }

  draw({ source, width, height }, detections) {
    const ratio = window.devicePixelRatio || 1;
    const scale = Math.min(this.stage.clientWidth / width, 0.75 * window.innerHeight / height);
    this.view.style.width = `${Math.round(width * scale)}px`;
    this.view.width = Math.round(width * scale * ratio);
    this.view.height = Math.round(height * scale * ratio);
    const context = this.view.getContext("2d");
    context.drawImage(source, 0, 0, this.view.width, this.view.height);
    context.scale(ratio, ratio);
    context.font = "600 13px system-ui, sans-serif";
    context.textBaseline = "top";
    const corners = detections.map(({ box }) => box.map((value) => value * scale));
    const backwards = [...detections.keys()].reverse(); // the best ends on top
    for (const i of backwards) {
      const [x0, y0, x1, y1] = corners[i];
      for (const [style, thickness] of [["rgb(0 0 0 / 55%)", 5], [`rgb(${colourOf(detections[i].id)})`, 2.5]]) {
        context.strokeStyle = style;
        context.lineWidth = thickness;
        context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      }
    }
    for (const i of backwards) {
      const { label, score, id } = detections[i];
      const text = `${label} ${score.toFixed(2)}`;
      const room = context.measureText(text).width + 10;
      const left = Math.max(0, Math.min(corners[i][0] - 1, this.view.width / ratio - room));
      const top = corners[i][1] > 20 ? corners[i][1] - 20 : corners[i][1];
      const colour = colourOf(id);
      const [red, green, blue] = colour;
      context.fillStyle = `rgb(${colour})`;
      context.fillRect(left, top, room, 20);
      context.fillStyle = 0.3 * red + 0.6 * green + 0.1 * blue > 110 ? "#000" : "#fff";
      context.fillText(text, left + 5, top + 4);
    }
  }
}

export const page = document.getElementById("stage") && new Page();
page?.attempt(() => page.start());
