"use strict";
// Draws the charts in `root` again with zoom, smoothing and a cursor. Without it the page shows them as they were drawn in
// Python. `update` takes newer data of the same charts; `close` ends listening to the window, before `root` is replaced.
// `state` is what is looked at, and `changed` is called after each change of it.
const showCharts = (root, first, state = { axis: "step", smooth: 0, log: false, range: null }, changed = () => {}) => {
  let data = first;
  const open = new AbortController();
  const NS = "http://www.w3.org/2000/svg", H = 220, LEFT = 58, RIGHT = 8, TOP = 8, BOTTOM = 26;
  const controls = root.querySelector(".controls");
  if (controls) controls.hidden = false;

  const short = (v) => {
    if (v === null || v === undefined || !isFinite(v)) return "–";
    const a = Math.abs(v);
    for (const [limit, by, unit] of [[1e12, 1e12, "T"], [1e9, 1e9, "G"], [1e6, 1e6, "M"], [1e4, 1e3, "k"]])
      if (a >= limit) return +(v / by).toPrecision(4) + unit;
    return a === 0 || a >= 1e-3 ? String(+v.toPrecision(4)) : v.toExponential(2).replace("e-0", "e-");
  };
  const clock = (s) => {
    s = Math.round(s);
    const h = Math.floor(s / 3600), m = Math.floor((s % 3600) / 60), r = String(s % 60).padStart(2, "0");
    return h ? `${h}:${String(m).padStart(2, "0")}:${r}` : `${m}:${r}`;
  };
  const axisText = (v) => (state.axis === "time" ? clock(v) : short(v));
  const ticks = (low, high, count) => {
    if (!(high > low)) return [low];
    let steps = [1, 2, 5, 10], step = 10 ** Math.floor(Math.log10((high - low) / count));
    if (state.axis === "time" && count === 7) { steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 604800]; step = 1; }
    step *= steps.find((f) => (high - low) / (step * f) <= count) || steps[steps.length - 1];
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i <= Math.floor(high / step + 1e-9); i++) found.push(i * step);
    return found;
  };
  const smoothed = (values, weight) => {
    let average = 0, norm = 0;
    return values.map((v) => {
      if (v === null) return null;
      average = weight * average + (1 - weight) * v;
      norm = weight * norm + (1 - weight);
      return average / norm;
    });
  };
  const add = (parent, name, attributes, text) => {
    const element = document.createElementNS(NS, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    parent.appendChild(element);
    return element;
  };
  const xs = (curve) => (state.axis === "step" ? curve.x : state.axis === "time" ? curve.time : curve.x.map((s) => s * curve.tokens));

  class View {
    constructor(figure) {
      this.number = Number(figure.dataset.chart);
      this.svg = figure.querySelector("svg");
      this.listen();
    }
    draw() {
      this.chart = data.charts[this.number];
      const box = this.svg.getBoundingClientRect();
      this.width = Math.max(280, Math.round(box.width || 500));
      this.svg.setAttribute("viewBox", `0 0 ${this.width} ${H}`);
      this.svg.replaceChildren();
      this.lines = this.chart.curves.map((curve) => {
        const x = xs(curve), raw = curve.mean;
        return { curve, x, raw, y: state.smooth && !curve.dots ? smoothed(raw, state.smooth) : raw };
      });
      this.limits();
      this.grid();
      const clip = `clip${this.chart.key}`;
      add(add(this.svg, "clipPath", { id: clip }), "rect", { x: LEFT, y: 0, width: this.width - LEFT - RIGHT, height: H - BOTTOM + 2 });
      const group = add(this.svg, "g", { "clip-path": `url(#${clip})` });
      for (const line of this.lines) this.plot(group, line);
      this.selection = add(this.svg, "rect", { class: "select", y: TOP, height: H - TOP - BOTTOM, width: 0 });
      this.cursor = add(this.svg, "line", { class: "cursor", y1: TOP, y2: H - BOTTOM, visibility: "hidden" });
    }
    limits() {
      let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
      for (const { x } of this.lines) if (x.length) { x0 = Math.min(x0, x[0]); x1 = Math.max(x1, x[x.length - 1]); }
      if (!isFinite(x0)) [x0, x1] = [0, 1];
      if (x1 === x0) { x0 -= 0.5; x1 += 0.5; }
      [this.x0, this.x1] = state.range || [x0, x1];
      const log = this.log = state.log;
      for (const { curve, x, y } of this.lines)
        for (let i = 0; i < x.length; i++) {
          if (x[i] < this.x0 || x[i] > this.x1) continue;
          for (const v of state.smooth ? [y[i]] : [y[i], curve.low && curve.low[i], curve.high && curve.high[i]])
            if (v !== null && v !== undefined && (!log || v > 0)) { y0 = Math.min(y0, v); y1 = Math.max(y1, v); }
        }
      if (!isFinite(y0)) [y0, y1] = log ? [0.1, 1] : [0, 1];
      if (log) { y0 /= 1.1; y1 *= 1.1; } else {
        const room = (y1 - y0) * 0.05 || Math.abs(y1) * 0.05 || 0.5;
        y0 = y0 >= 0 && y0 - room < 0 ? 0 : y0 - room; y1 += room;
      }
      [this.y0, this.y1] = [y0, y1];
    }
    X(v) { return LEFT + ((v - this.x0) / (this.x1 - this.x0)) * (this.width - LEFT - RIGHT); }
    Y(v) {
      const [a, b, c] = this.log ? [Math.log10(v), Math.log10(this.y0), Math.log10(this.y1)] : [v, this.y0, this.y1];
      return H - BOTTOM - ((a - b) / (c - b)) * (H - TOP - BOTTOM);
    }
    atX(px) { return this.x0 + ((px - LEFT) / (this.width - LEFT - RIGHT)) * (this.x1 - this.x0); }
    grid() {
      let values = ticks(this.y0, this.y1, 5);
      if (this.log) {
        const powers = [];
        for (let p = Math.ceil(Math.log10(this.y0)); p <= Math.floor(Math.log10(this.y1)); p++) powers.push(10 ** p);
        values = powers.length > 1 ? powers : values.filter((v) => v > 0);
      }
      for (const v of values) {
        const y = this.Y(v);
        add(this.svg, "line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y });
        add(this.svg, "text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, short(v));
      }
      for (const v of ticks(this.x0, this.x1, this.width > 700 && state.axis !== "time" ? 10 : state.axis === "time" ? 7 : 6))
        add(this.svg, "text", { x: this.X(v), y: H - 8, "text-anchor": "middle" }, axisText(v));
      add(this.svg, "line", { class: "axis", x1: LEFT, x2: this.width - RIGHT, y1: H - BOTTOM, y2: H - BOTTOM });
    }
    plot(group, { curve, x, raw, y }) {
      const colour = `var(--c${curve.colour % 8})`;
      if (curve.dots) {
        this.stroke(group, x, y, { class: "line", stroke: colour, "stroke-dasharray": "2 4" });
        x.forEach((v, i) => y[i] !== null && add(group, "circle", { class: "mark", cx: this.X(v), cy: this.Y(y[i]), r: 3.5, fill: colour }));
        return;
      }
      if (curve.low && !state.smooth) this.band(group, curve, x, colour);
      if (state.smooth) this.stroke(group, x, raw, { class: "line raw", stroke: colour });
      this.stroke(group, x, y, { class: "line", stroke: colour });
    }
    stroke(group, x, y, attributes) {
      let d = "", pen = false;
      for (let i = 0; i < x.length; i++) {
        const ok = y[i] !== null && (!this.log || y[i] > 0);
        if (ok) {
          const alone = !pen && (i + 1 >= x.length || y[i + 1] === null);
          d += `${pen ? "L" : "M"}${this.X(x[i]).toFixed(1)} ${this.Y(y[i]).toFixed(1)}${alone ? "h.01" : ""}`;
        }
        pen = ok;
      }
      if (d) add(group, "path", { ...attributes, d });
    }
    band(group, curve, x, colour) {
      let above = [], below = [], d = "";
      const close = () => { if (above.length) d += "M" + above.concat(below.reverse()).join("L") + "Z"; above = []; below = []; };
      for (let i = 0; i < x.length; i++) {
        const lo = curve.low[i], hi = curve.high[i];
        if (lo === null || hi === null || (this.log && lo <= 0)) { close(); continue; }
        above.push(`${this.X(x[i]).toFixed(1)} ${this.Y(hi).toFixed(1)}`);
        below.push(`${this.X(x[i]).toFixed(1)} ${this.Y(lo).toFixed(1)}`);
      }
      close();
      if (d) add(group, "path", { class: "band", fill: colour, d });
    }
    listen() {
      const inside = (event) => {
        const box = this.svg.getBoundingClientRect();
        return Math.min(this.width - RIGHT, Math.max(LEFT, ((event.clientX - box.left) / box.width) * this.width));
      };
      this.svg.addEventListener("pointermove", (event) => {
        const px = inside(event);
        if (this.from !== undefined) {
          this.selection.setAttribute("x", Math.min(px, this.from));
          this.selection.setAttribute("width", Math.abs(px - this.from));
        }
        point(this.atX(px), event.clientX, event.clientY, this);
      });
      this.svg.addEventListener("pointerdown", (event) => {
        if (event.pointerType === "touch" || event.button) return;
        this.from = inside(event);
        this.svg.setPointerCapture(event.pointerId);
      });
      this.svg.addEventListener("pointerup", (event) => {
        if (this.from === undefined) return;
        const [a, b] = [this.from, inside(event)].sort((one, two) => one - two);
        this.from = undefined;
        if (b - a > 6) zoom([this.atX(a), this.atX(b)]); else this.selection.setAttribute("width", 0);
      });
      this.svg.addEventListener("pointerleave", () => point(null));
      this.svg.addEventListener("blur", () => point(null));
      this.svg.addEventListener("dblclick", () => zoom(null));
      this.svg.addEventListener("keydown", (event) => {
        const line = this.lines.find((one) => one.x.length);
        if (!line) return;
        const seen = line.x.filter((v) => v >= this.x0 && v <= this.x1);
        let at = this.at === undefined ? seen.length - 1 : seen.findIndex((v) => v >= this.at);
        if (event.key === "ArrowLeft") at = Math.max(0, at - (event.shiftKey ? 10 : 1));
        else if (event.key === "ArrowRight") at = Math.min(seen.length - 1, (at < 0 ? seen.length - 1 : at) + (event.shiftKey ? 10 : 1));
        else if (event.key === "Escape") { this.at = undefined; point(null); zoom(null); return; }
        else return;
        event.preventDefault();
        this.at = seen[at];
        const box = this.svg.getBoundingClientRect();
        point(this.at, box.left + (this.X(this.at) / this.width) * box.width, box.top + 40, this);
      });
    }
    show(at) {
      const hidden = at === null || at < this.x0 || at > this.x1;
      this.cursor.setAttribute("visibility", hidden ? "hidden" : "visible");
      if (hidden) return;
      this.cursor.setAttribute("x1", this.X(at));
      this.cursor.setAttribute("x2", this.X(at));
    }
    describe(at) {
      const rows = [];
      for (const { curve, x, y } of this.lines) {
        if (!x.length) continue;
        let low = 0, high = x.length - 1;
        while (low < high) { const mid = (low + high) >> 1; if (x[mid] < at) low = mid + 1; else high = mid; }
        if (low > 0 && at - x[low - 1] < x[low] - at) low--;
        const band = curve.low && curve.low[low] !== null && curve.high[low] > curve.low[low] ? ` (${short(curve.low[low])} – ${short(curve.high[low])})` : "";
        rows.push([curve, low, `${short(y[low])}${band}`]);
      }
      return rows;
    }
  }

  const views = [...root.querySelectorAll(".chart")].map((figure) => new View(figure));
  const tip = document.querySelector(".tip") || document.body.appendChild(Object.assign(document.createElement("div"), { className: "tip", hidden: true }));
  tip.setAttribute("role", "status");
  const point = (at, left, top, view) => {
    for (const one of views) one.show(at);
    tip.hidden = at === null;
    if (at === null) return;
    tip.replaceChildren();
    const rows = view.describe(at);
    if (rows.length) {
      const [curve, i] = rows[0];
      const parts = [`${data.words.step} ${curve.x[i].toLocaleString("en")}`];
      if (curve.time) parts.push(clock(curve.time[i]));
      tip.append(parts.join(" · "));
    }
    for (const [curve, , text] of rows) {
      const row = document.createElement("div"), dot = document.createElement("i"), value = document.createElement("b");
      dot.style.background = `var(--c${curve.colour % 8})`;
      value.textContent = text;
      row.append(dot, curve.name ? `${curve.name} ` : "", value);
      tip.append(row);
    }
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, left + 16 + box.width > innerWidth ? left - 16 - box.width : left + 16)}px`;
    tip.style.top = `${Math.max(8, Math.min(innerHeight - box.height - 8, top + 14))}px`;
  };
  const whole = root.querySelector("#whole");
  const redraw = () => { for (const view of views) view.draw(); };
  const zoom = (range) => { state.range = range; if (whole) whole.disabled = !range; redraw(); changed(); };
  if (controls) {
    for (const input of root.querySelectorAll("input[name=axis]")) {
      input.checked = input.value === state.axis;
      input.addEventListener("change", () => { state.axis = input.value; zoom(null); });
    }
    const slider = root.querySelector("#smooth"), shown = root.querySelector("output"), log = root.querySelector("#log");
    slider.value = state.smooth;
    shown.textContent = slider.value;
    log.checked = state.log;
    whole.disabled = !state.range;
    slider.addEventListener("input", () => {
      state.smooth = Number(slider.value);
      shown.textContent = slider.value;
      redraw();
      changed();
    });
    log.addEventListener("change", (event) => { state.log = event.target.checked; redraw(); changed(); });
    whole.addEventListener("click", () => zoom(null));
  }
  let width = 0;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraw(); } }, { signal: open.signal });
  redraw();
  return { update: (newer) => { data = newer; redraw(); }, close: () => open.abort() };
};
