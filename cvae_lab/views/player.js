// The frame player. The notebook widget (through anywidget) and the HTML page both use this file.
//
// `clip` contains constant data: size and number of frames, captions, frame numbers, curves in dB.
// `sheets[k][s]` is sprite sheet s of panel k: a picture with many frames side by side, row by row.
// `store` contains the state (frame, playing, speed) and calls its listeners after every change.

const LEFT = 40, RIGHT = 12, TOP = 8, BOTTOM = 24, HEIGHT = 140; // margins and height of the curve, CSS pixels
const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 4];

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function mean(values) {
  const finite = values.filter((value) => value !== null);
  return finite.reduce((sum, value) => sum + value, 0) / finite.length;
}

function readout(clip, i) {
  const scores = clip.curves.map(({ prefix, values }) =>
    `${prefix}${values[i] === null ? "–" : values[i].toFixed(1)} dB`);
  return [`frame ${clip.numbers[i]}`, ...scores].join(" · ");
}

function legend(clip) {
  const entries = clip.curves.map(({ name, values, color, dash }) => [
    `<path d="M0 6h20" stroke="${color}" stroke-width="2" stroke-dasharray="${dash}"/>`,
    `${name}, mean ${mean(values).toFixed(1)} dB`,
  ]);
  if (clip.horizon) {
    entries.push([`<rect width="20" height="12" fill="#E69F00" fill-opacity="0.3"/>`,
      `trained unroll, ${clip.horizon} frames`]);
  }
  return element("div", { class: "legend" }, ...entries.map(([swatch, text]) => {
    const item = element("span");
    item.innerHTML = `<svg width="20" height="12" aria-hidden="true">${swatch}</svg> `;
    item.append(text);
    return item;
  }));
}

// Return the PSNR curve as SVG of the given width, so that its text has the same size on a narrow screen.
function curveSvg(clip, width) {
  const n = clip.frames, inner = width - LEFT - RIGHT;
  const finite = clip.curves.flatMap(({ values }) => values.filter((value) => value !== null));
  const least = finite.reduce((a, b) => Math.min(a, b)), most = finite.reduce((a, b) => Math.max(a, b));
  const low = 5 * Math.floor(least / 5), high = 5 * Math.ceil(most / 5 + 1e-6);
  const x = (i) => LEFT + inner * i / Math.max(n - 1, 1);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low);
  const parts = [];
  if (clip.horizon) {
    const wide = x(Math.min(clip.horizon, n) - 1) - LEFT;
    parts.push(`<rect x="${LEFT}" y="${TOP}" width="${wide}" height="${HEIGHT - TOP - BOTTOM}" fill="#E69F00"
      fill-opacity="0.3"/>`);
  }
  const step = [5, 10, 20, 50, 100].find((size) => (high - low) / size <= 4) ?? 200;
  for (let value = step * Math.ceil(low / step); value <= high; value += step) {
    parts.push(`<line x1="${LEFT}" x2="${width - RIGHT}" y1="${y(value)}" y2="${y(value)}" stroke="currentColor"
      stroke-opacity="0.2"/><text x="${LEFT - 6}" y="${y(value) + 4}" text-anchor="end">${value}</text>`);
  }
  const room = Math.max(2, Math.floor(width / 90)); // one frame number per 90 pixels
  const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((size) => n / size <= room) ?? n;
  for (let i = every - 1; i < n; i += every) {
    parts.push(`<text x="${x(i)}" y="${HEIGHT - 6}" text-anchor="middle">${i === every - 1 ? "frame " : ""}${clip.numbers[i]}</text>`);
  }
  for (const { values, color, dash } of clip.curves) {
    let pen = "M"; // the line has a gap at values that are not finite
    const path = values.map((value, i) => {
      const piece = value === null ? "" : `${pen}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = value === null ? "M" : "L";
      return piece;
    });
    parts.push(`<path d="${path.join("")}" fill="none" stroke="${color}" stroke-width="1.6"
      stroke-linejoin="round" stroke-dasharray="${dash}"/>`);
  }
  const means = clip.curves.map(({ name, values }) => `${name}: mean ${mean(values).toFixed(1)} dB`).join("; ");
  return `<svg width="${width}" height="${HEIGHT}" role="img" aria-label="PSNR per frame. ${means}"
    fill="currentColor">${parts.join("")}</svg><span class="unit">dB</span>`;
}

function createPlayer(root, clip, sheets, store, keyTarget = root) {
  const last = clip.frames - 1;
  const canvases = clip.captions.map((caption) => element("canvas",
    { width: clip.width, height: clip.height, role: "img", "aria-label": `${caption}, current frame` }));
  const panels = canvases.map((canvas, k) =>
    element("figure", {}, element("figcaption", {}, clip.captions[k]), canvas));
  const button = element("button", { type: "button" }, "Play");
  const slider = element("input", { type: "range", min: 0, max: last, value: 0, "aria-label": "frame" });
  const text = element("output", { "aria-live": "polite" });
  const speed = element("select", { "aria-label": "speed" },
    ...SPEEDS.map((factor) => element("option", { value: factor }, `${factor} ×`)));
  const cursor = element("div", { class: "cursor" });
  const plot = element("div", { class: "plot" }), drawing = element("div");
  plot.append(drawing, cursor);
  const hasCurve = clip.curves.length > 0;
  const keys = "← →: one frame (with Shift: ten) · Page Up, Page Down: a tenth of the clip · Home, End · Space: play, pause"
    + (hasCurve ? " · click on the curve: go to that frame" : "");

  root.classList.add("cvae-player");
  const attributes = { role: "group", "aria-label": clip.title || "frame player", tabindex: 0,
    "data-lm-suppress-shortcuts": "true" };
  for (const [name, value] of Object.entries(attributes)) root.setAttribute(name, value);
  root.style.maxWidth = `${clip.page_width}px`;
  if (clip.title) root.append(element("h2", {}, clip.title));
  root.append(element("div", { class: "panels" }, ...panels),
    element("div", { class: "controls" }, button, slider, text, speed));
  if (hasCurve) root.append(legend(clip), plot);
  root.append(element("small", {}, keys));

  function draw() {
    const i = Math.max(0, Math.min(last, store.frame));
    const sheet = Math.floor(i / clip.per_sheet), cell = i % clip.per_sheet;
    const x = (cell % clip.columns) * clip.width, y = Math.floor(cell / clip.columns) * clip.height;
    canvases.forEach((canvas, k) => {
      const picture = sheets[k][sheet];
      if (picture.complete && picture.naturalWidth) {
        canvas.getContext("2d").drawImage(picture, x, y, clip.width, clip.height, 0, 0, clip.width, clip.height);
      } else {
        picture.addEventListener("load", draw, { once: true });
      }
    });
    slider.value = i;
    slider.setAttribute("aria-valuetext", readout(clip, i));
    text.setAttribute("aria-live", store.playing ? "off" : "polite");
    text.value = readout(clip, i);
    cursor.style.left = `calc(${LEFT}px + (100% - ${LEFT + RIGHT}px) * ${last ? i / last : 0})`;
    button.textContent = store.playing ? "Pause" : "Play";
    speed.value = SPEEDS.includes(store.speed) ? store.speed : 1;
    if (store.playing) start();
  }

  // Several views of one widget share `store`. Each computes the frame from the clock, so that two views do not play at
  // twice the speed.
  let running = false, base = null, expected = -1;
  function tick(now) {
    if (!store.playing || !root.isConnected) {
      running = false;
      return;
    }
    const rate = clip.fps * store.speed / 1000;
    if (store.frame !== expected || base.rate !== rate) base = { now, rate, frame: store.frame };
    expected = (base.frame + Math.floor((now - base.now) * rate)) % clip.frames;
    if (expected !== store.frame) store.set({ frame: expected });
    requestAnimationFrame(tick);
  }

  function start() {
    if (running || !root.isConnected) return;
    running = true;
    expected = -1;
    requestAnimationFrame(tick);
  }

  const seek = (frame) => store.set({ frame: Math.max(0, Math.min(last, Math.round(frame))) });
  const toggle = () => store.set({ playing: !store.playing });

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation(); // a notebook uses these keys for its own shortcuts
    const step = event.shiftKey ? 10 : 1, page = Math.max(1, Math.round(clip.frames / 10));
    const actions = {
      ArrowLeft: () => seek(store.frame - step), ArrowRight: () => seek(store.frame + step),
      PageDown: () => seek(store.frame - page), PageUp: () => seek(store.frame + page),
      Home: () => seek(0), End: () => seek(last), " ": toggle,
    };
    const native = event.target === speed || (event.target === button && event.key === " ");
    if (native || !(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  }

  function seekTo(event) {
    const box = plot.getBoundingClientRect();
    seek(last * (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT));
  }

  button.addEventListener("click", toggle);
  slider.addEventListener("input", () => seek(Number(slider.value)));
  speed.addEventListener("change", () => store.set({ speed: Number(speed.value) }));
  keyTarget.addEventListener("keydown", key);
  plot.addEventListener("pointerdown", (event) => {
    plot.setPointerCapture(event.pointerId);
    seekTo(event);
  });
  plot.addEventListener("pointermove", (event) => event.buttons && seekTo(event));
  let width = 0;
  const resized = new ResizeObserver(() => {
    if (hasCurve && plot.clientWidth && plot.clientWidth !== width) {
      width = plot.clientWidth;
      drawing.innerHTML = curveSvg(clip, width);
    }
    draw();
  });
  resized.observe(root);
  const longest = clip.numbers.map((_, i) => readout(clip, i).length).reduce((a, b) => Math.max(a, b));
  text.style.minWidth = `min(${longest}ch, 100%)`; // the slider keeps its length while the text changes
  store.listen(draw);
  draw();
  return () => {
    resized.disconnect();
    keyTarget.removeEventListener("keydown", key);
    store.forget(draw);
  };
}

// The store of a page without a kernel.
function pageStore() {
  const state = { frame: 0, playing: false, speed: 1 }, listeners = new Set();
  return {
    get frame() { return state.frame; },
    get playing() { return state.playing; },
    get speed() { return state.speed; },
    set(changes) {
      Object.assign(state, changes);
      for (const listener of listeners) listener();
    },
    listen: (listener) => listeners.add(listener),
    forget: (listener) => listeners.delete(listener),
  };
}

// The store of a notebook widget: the traits of its model. Drawing does not depend on the kernel. Changes are sent to
// the kernel at most ten times a second, so that no queue builds up while it is busy. In the kernel, frames count from 1.
function widgetStore(model, isConnected) {
  let timer = null, sent = 0;
  const save = () => {
    timer = null;
    sent = Date.now();
    if (isConnected()) model.save_changes();
  };
  const events = ["change:frame", "change:playing", "change:speed"];
  return {
    get frame() { return model.get("frame") - 1; },
    get playing() { return model.get("playing"); },
    get speed() { return model.get("speed"); },
    set(changes) {
      if ("frame" in changes) changes.frame += 1;
      for (const [name, value] of Object.entries(changes)) model.set(name, value);
      timer ??= setTimeout(save, Math.max(0, sent + 100 - Date.now()));
    },
    listen: (listener) => events.forEach((event) => model.on(event, listener)),
    forget: (listener) => events.forEach((event) => model.off(event, listener)),
  };
}

function render({ model, el }) {
  const urls = [];
  const sheets = model.get("sheets").map((panel) => panel.map((bytes) => {
    const picture = new Image();
    picture.src = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
    urls.push(picture.src);
    return picture;
  }));
  const root = el.appendChild(element("div"));
  const isConnected = () => !root.closest(".jupyter-widgets-disconnected");
  const dispose = createPlayer(root, model.get("clip"), sheets, widgetStore(model, isConnected));
  return () => {
    dispose();
    urls.forEach((url) => URL.revokeObjectURL(url));
  };
}

// The HTML page contains its sheets as hidden pictures. Its keys work everywhere on the page. If the page is inside a
// notebook, it sends its height to the notebook.
function renderPage(root) {
  const clip = JSON.parse(root.dataset.clip);
  const pictures = [...root.querySelectorAll("img")];
  const sheets = clip.captions.map((_, k) => pictures.filter((picture) => Number(picture.dataset.panel) === k));
  const isPage = document.documentElement.hasAttribute("data-cvae-page");
  createPlayer(root, clip, sheets, pageStore(), isPage ? document : root);
  if (isPage && window.parent !== window) {
    const report = () => window.parent.postMessage({ cvaePlayerHeight: root.offsetTop + root.offsetHeight + 16 }, "*");
    new ResizeObserver(report).observe(root);
  }
}

export default { render };
