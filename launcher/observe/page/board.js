"use strict";
// The board: a stream of server-sent events for what changes, the address for what is looked at.
(() => {
  const texts = JSON.parse(document.getElementById("texts").textContent);
  const say = (text, values = {}) => (texts[text] || text).replace(/\{(\w+)\}/g, (_, key) => values[key]);
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const addressed = (query) => (String(query) ? `?${query}` : "");
  const clock = (s) => {
    s = Math.round(s);
    const h = Math.floor(s / 3600), m = Math.floor((s % 3600) / 60), r = String(s % 60).padStart(2, "0");
    return h ? `${h}:${String(m).padStart(2, "0")}:${r}` : `${m}:${r}`;
  };
  const age = (s) => {
    for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) if (s >= size) return `${Math.floor(s / size)} ${unit}`;
    return `${Math.max(0, Math.floor(s))} s`;
  };

  // ---------------------------------------------------------------------------------------------- the stream

  // A browser opens six connections to a host at most: a page that is not seen gives its own back.
  const link = document.getElementById("link");
  const connect = (address, handlers) => {
    let source = null;
    const close = () => { if (source) source.close(); source = null; };
    const open = () => {
      close();
      if (document.hidden) return;
      source = new EventSource(address());
      source.onopen = () => { link.textContent = say("live"); link.className = "link"; };
      source.onerror = () => {
        link.textContent = say("not connected; trying again");
        link.className = "link lost";
        // A server that answers with an error, as one does that has just started, ends the browser's own trying.
        if (source && source.readyState === EventSource.CLOSED) { source = null; setTimeout(open, 2000); }
      };
      for (const [kind, handle] of Object.entries(handlers))
        source.addEventListener(kind, (event) => handle(JSON.parse(event.data), close));
    };
    document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
    addEventListener("pagehide", close);
    addEventListener("pageshow", (event) => { if (event.persisted) open(); });
    open();
    return { open };
  };

  // ---------------------------------------------------------------------------------------------- the list

  const listJobs = () => {
    const rows = new Map(), lines = new Map();
    const body = document.querySelector("#jobs tbody"), filters = document.getElementById("filters");
    const none = document.getElementById("none"), count = document.getElementById("count");
    const bar = document.getElementById("ticked"), compare = document.getElementById("compare"), most = Number(/\d+/.exec(document.getElementById("toomany").textContent)[0]);
    let skew = 0, heard = false, view;

    const read = () => {
      const query = new URLSearchParams(location.search);
      view = {
        q: query.get("q") || "", states: new Set(query.getAll("state")), ticks: new Set(query.getAll("job")),
        key: query.get("sort") || "created", down: query.get("order") !== "up",
      };
      filters.elements.q.value = view.q;
      for (const box of filters.querySelectorAll("input[name=state]")) box.checked = view.states.has(box.value);
    };
    const write = () => {
      const query = new URLSearchParams();
      if (view.q) query.set("q", view.q);
      for (const state of view.states) query.append("state", state);
      if (view.key !== "created") query.set("sort", view.key);
      if (!view.down) query.set("order", "up");
      for (const job of view.ticks) query.append("job", job);
      history.replaceState(null, "", `${location.pathname}${addressed(query)}`);
      sessionStorage.setItem("list", location.search);
    };
    const fits = (row) => {
      if (view.states.size && !view.states.has(row.state)) return false;
      const found = `${row.job_id} ${row.name} ${row.owner} ${row.target}`.toLowerCase();
      return view.q.toLowerCase().split(/\s+/).every((word) => found.includes(word));
    };
    const value = (row) => {
      if (view.key === "progress") return row.total ? row.done / row.total : null;
      return row[view.key] === "" ? null : row[view.key];
    };
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null) || (b.created || 0) - (a.created || 0);
      const sign = x < y ? -1 : x > y ? 1 : 0;
      return (view.down ? -sign : sign) || (b.created || 0) - (a.created || 0) || (a.job_id < b.job_id ? -1 : 1);
    };

    const spark = (values) => {
      const known = values.filter((v) => v !== null);
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("class", "spark");
      svg.setAttribute("viewBox", "0 0 90 22");
      svg.setAttribute("aria-hidden", "true");
      if (known.length < 2) return svg;
      const low = Math.min(...known), span = Math.max(...known) - low || 1;
      let d = "", pen = false;
      values.forEach((v, i) => {
        if (v !== null) d += `${pen ? "L" : "M"}${((i / (values.length - 1)) * 90).toFixed(1)} ${(20 - ((v - low) / span) * 18).toFixed(1)}`;
        pen = v !== null;
      });
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", d);
      svg.append(path);
      return svg;
    };
    const progress = (row) => {
      if (!row.total) return [row.done ? String(row.done) : "–"];
      const part = Math.min(1, row.done / row.total), fill = element("i");
      fill.style.width = `${100 * part}%`;
      const track = element("span", { class: "progress", "aria-hidden": "true" }, fill);
      return [track, `${Math.floor(100 * part)} %`, element("span", { class: "soft" }, `  ${row.done.toLocaleString("en")} ${say("of")} ${row.total.toLocaleString("en")}`)];
    };
    const line = (row) => {
      const tick = element("input", { type: "checkbox", "aria-label": say("Compare {job}", { job: row.job_id }) });
      tick.checked = view.ticks.has(row.job_id);
      tick.disabled = row.state === "unreadable";
      tick.addEventListener("change", () => {
        if (tick.checked) view.ticks.add(row.job_id); else view.ticks.delete(row.job_id);
        write();
        ticked();
      });
      const name = row.state === "unreadable" ? row.job_id : element("a", { href: `/jobs/${encodeURIComponent(row.job_id)}` }, row.job_id);
      const title = element("th", { scope: "row" }, name);
      if (row.attempt > 1) title.append(element("span", { class: "soft" }, ` ${say("attempt")} ${row.attempt}`));
      if (row.note) title.append(element("span", { class: "note" }, row.note));
      const loss = row.loss === null ? "–" : typeof row.loss === "number" ? row.loss.toFixed(4) : row.loss;
      const old = element("td", { class: "age", title: row.created === null ? null : new Date(row.created * 1000).toLocaleString() });
      return element("tr", { "data-job": row.job_id },
        element("td", {}, tick), title,
        element("td", {}, element("span", { class: `state ${row.state}` }, say(row.state))),
        element("td", {}, ...progress(row)),
        element("td", {}, row.left_s === null ? "–" : clock(row.left_s)),
        element("td", {}, spark(row.spark), loss),
        element("td", {}, row.cards ? `${row.cards} ${row.target}` : "–"),
        element("td", {}, row.owner || "–"), old);
    };
    const ages = () => {
      for (const [id, made] of lines) {
        const row = rows.get(id);
        made.querySelector(".age").textContent = row.created === null ? "–" : age(Date.now() / 1000 + skew - row.created);
      }
    };
    const ticked = () => {
      const chosen = [...view.ticks].filter((id) => rows.has(id));
      bar.hidden = chosen.length === 0;
      document.getElementById("ticks").textContent = `${chosen.length} ${say("jobs")}`;
      document.getElementById("toomany").hidden = chosen.length <= most;
      compare.textContent = say(chosen.length > 1 ? "Compare" : "Show report");
      compare.href = `/report?${new URLSearchParams(chosen.map((id) => ["job", id]))}`;
      compare.setAttribute("aria-disabled", String(chosen.length > most));
    };
    const show = () => {
      const chosen = [...rows.values()].filter(fits).sort(order).map((row) => lines.get(row.job_id));
      // What stands already where it belongs is not touched: the focus and a selection of text stay.
      chosen.forEach((made, i) => { if (body.children[i] !== made) body.insertBefore(made, body.children[i] || null); });
      while (body.children.length > chosen.length) body.lastChild.remove();
      none.hidden = heard && chosen.length > 0;
      if (heard) none.textContent = say(rows.size ? "No jobs fit." : "No jobs yet.");
      count.textContent = chosen.length === rows.size ? String(rows.size) : `${chosen.length} ${say("of")} ${rows.size}`;
      for (const head of document.querySelectorAll("#jobs th[data-key]"))
        if (head.dataset.key === view.key) head.setAttribute("aria-sort", view.down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      ticked();
      ages();
    };
    const take = (news) => {
      heard = true;
      skew = news.now - Date.now() / 1000;
      const gone = news.whole ? [...rows.keys()].filter((id) => !news.rows.some((row) => row.job_id === id)) : news.gone;
      for (const id of gone) { rows.delete(id); lines.get(id)?.remove(); lines.delete(id); }
      for (const row of news.rows) {
        if (JSON.stringify(rows.get(row.job_id)) === JSON.stringify(row)) continue;
        const former = lines.get(row.job_id), made = line(row), within = former && former.contains(document.activeElement);
        const focused = within ? (document.activeElement.tagName === "A" ? "a" : "input") : null;
        rows.set(row.job_id, row);
        lines.set(row.job_id, made);
        if (former && former.parentNode) former.replaceWith(made);
        if (focused) made.querySelector(focused)?.focus();
      }
      show();
    };

    read();
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("input", () => {
      view.q = filters.elements.q.value.trim();
      view.states = new Set([...filters.querySelectorAll("input[name=state]:checked")].map((box) => box.value));
      write();
      show();
    });
    for (const head of document.querySelectorAll("#jobs th[data-key]"))
      head.firstElementChild.addEventListener("click", () => {
        view.down = view.key === head.dataset.key ? !view.down : head.dataset.key === "created";
        view.key = head.dataset.key;
        write();
        show();
      });
    document.getElementById("untick").addEventListener("click", () => {
      view.ticks.clear();
      for (const box of body.querySelectorAll("input:checked")) box.checked = false;
      write();
      ticked();
    });
    sessionStorage.setItem("list", location.search);
    setInterval(ages, 10000);
    connect(() => "/events", { rows: take });
  };

  // ---------------------------------------------------------------------------------------------- one job

  // What is looked at of the curves, in the address.
  const curvesOf = (query) => {
    const axis = query.get("axis"), smooth = Number(query.get("smooth")), range = [Number(query.get("from")), Number(query.get("to"))];
    return {
      axis: ["tokens", "time"].includes(axis) ? axis : "step",
      smooth: smooth > 0 && smooth < 1 ? smooth : 0,
      log: query.has("logarithmic"),
      range: range[1] > range[0] && range.every(isFinite) ? range : null,
    };
  };
  const putCurves = (state, query) => {
    if (state.axis !== "step") query.set("axis", state.axis);
    if (state.smooth) query.set("smooth", state.smooth);
    if (state.log) query.set("logarithmic", "");
    if (state.range) for (const [i, name] of ["from", "to"].entries()) query.set(name, +state.range[i].toPrecision(6));
  };

  const oneJob = (job) => {
    const parts = Object.fromEntries([...document.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    const form = document.getElementById("log-view"), lines = document.getElementById("lines");
    const state = curvesOf(new URLSearchParams(location.search));
    let { number, charts } = JSON.parse(document.getElementById("first").textContent), view = null;
    const shape = (data) => data.charts.map((chart) => `${chart.key}:${chart.curves.length}`).join();

    const draw = () => { view = charts.charts.length ? showCharts(parts.curves, charts, state, keep) : null; };
    // The charts stay, with their zoom and cursor; what is said of them is said anew.
    const retell = (text) => {
      const fresh = element("div");
      fresh.innerHTML = text;
      for (const kind of [".chart svg", "p.soft"]) {
        const [old, now] = [parts.curves, fresh].map((part) => [...part.querySelectorAll(kind)]);
        old.forEach((one, i) => {
          if (!now[i]) return;
          if (kind === "p.soft") one.innerHTML = now[i].innerHTML; else one.setAttribute("aria-label", now[i].getAttribute("aria-label"));
        });
      }
    };
    const take = (news) => {
      number = news.number;
      const same = shape(news.charts) === shape(charts) && view;
      charts = news.charts;
      for (const [name, text] of Object.entries(news.parts)) {
        if (name === "curves" && same) { retell(text); continue; }
        if (name === "curves" && view) view.close();
        const at = parts[name].querySelector(".scroll, .verdict"), [left, top] = at ? [at.scrollLeft, at.scrollTop] : [0, 0];
        parts[name].innerHTML = text;
        const now = parts[name].querySelector(".scroll, .verdict");
        if (now) [now.scrollLeft, now.scrollTop] = [left, top];
      }
      if (same) view.update(charts); else draw();
    };

    const read = () => {
      const query = new URLSearchParams(location.search), log = query.get("log");
      if (log && ![...form.elements.log.options].some((one) => one.value === log)) form.elements.log.append(element("option", {}, log));
      if (log) form.elements.log.value = log;
      form.elements.contains.value = query.get("contains") || "";
      form.elements.errors.checked = query.has("errors");
    };
    const ofLog = () => {
      const query = new URLSearchParams();
      if (form.elements.log.selectedIndex > 0) query.set("log", form.elements.log.value);
      if (form.elements.contains.value) query.set("contains", form.elements.contains.value);
      if (form.elements.errors.checked) query.set("errors", "");
      return query;
    };
    const address = () => {
      const query = ofLog();
      query.set("log", form.elements.log.value);
      query.set("number", number);
      return `/jobs/${encodeURIComponent(job)}/events?${query}`;
    };
    // Not at each move of a slider: browsers refuse an address that changes too often.
    let keeping = 0;
    const keep = () => {
      clearTimeout(keeping);
      keeping = setTimeout(() => {
        const query = ofLog();
        putCurves(state, query);
        history.replaceState(null, "", `${location.pathname}${addressed(query)}`);
      }, 150);
    };
    const showLog = (news) => {
      lines.textContent = news.lines.length ? news.lines.join("\n") : say("No lines.");
      if (form.elements.follow.checked) lines.scrollTop = lines.scrollHeight;
    };

    read();
    draw();
    document.getElementById("back").href = `/${sessionStorage.getItem("list") || ""}`;
    const stream = connect(address, {
      job: take, log: showLog,
      gone: (news, close) => { close(); link.textContent = news.message; link.className = "link lost"; },
    });
    let waiting = 0;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      if (event.target.name === "follow") { if (form.elements.follow.checked) lines.scrollTop = lines.scrollHeight; return; }
      keep();
      clearTimeout(waiting);
      waiting = setTimeout(stream.open, 250);
    });
  };

  if (document.body.dataset.view === "jobs") listJobs(); else oneJob(document.body.dataset.job);
})();
