/* Draws the charts from the page's JSON. Texts from the data are set as text, never as HTML. */
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("report").textContent);
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // Ten colors that differ for color-blind readers and contrast with the page; tests/report measures both.
  const COLORS = {
    light: ["#c55e6e", "#332288", "#bb8a00", "#007530", "#0179c4", "#882255", "#2f9c8c", "#727500", "#aa4499", "#d44f44"],
    dark: ["#ee91a7", "#8f7fe8", "#e9c65c", "#4fb477", "#90cff1", "#c2548a", "#5cd0c2", "#b7bd68", "#d07cc4", "#ef7f40"],
  };
  const SYMBOLS = ["circle", "diamond", "triangle", "rect", "roundRect"];
  const charts = new Map();
  let printing = false;

  const theme = () => (printing ? "light" : root.dataset.theme || (dark.matches ? "dark" : "light"));
  const token = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const narrow = () => document.getElementById("main").clientWidth < 560;
  const count = (value) => Number(value).toLocaleString("en");
  const percent = (value, digits) => (100 * value).toFixed(digits === undefined ? 1 : digits) + " %";
  const short = (text, most) => (String(text).length > most ? String(text).slice(0, most - 1) + "…" : String(text));
  const title = (id) => data.titles[id] || "Cluster " + id;
  const place = new Map(data.order.map((id, n) => [String(id), n]));

  function color(order) {
    const colors = COLORS[theme()];
    return order !== undefined && order >= 0 && order < colors.length ? colors[order] : theme() === "dark" ? "#6b727d" : "#b4b8bf";
  }
  const colorOf = (id) => color(place.get(String(id)));

  function make(tag, text, attributes) {
    const node = document.createElement(tag);
    if (text !== undefined && text !== null) node.textContent = text;
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    return node;
  }

  /* A tooltip of lines of text. */
  function tip(lines) {
    const box = make("div", undefined, { class: "tip" });
    lines.filter((line) => line !== undefined && line !== "").forEach((line, n) => {
      const row = make("div", line);
      if (n === 0) row.style.fontWeight = "600";
      box.append(row);
    });
    box.style.cssText = "max-width: 18rem; white-space: normal; overflow-wrap: anywhere; line-height: 1.45";
    return box;
  }

  function base(formatter, trigger) {
    const small = { color: token("muted"), fontSize: 12 };
    return {
      animation: false, // a printed page must be complete at once
      aria: { enabled: false }, // the page has labels and tables of its own
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: token("ink") },
      color: [token("accent")],
      tooltip: {
        trigger: trigger || "item", confine: true, transitionDuration: 0,
        backgroundColor: token("surface"), borderColor: token("line"), padding: [8, 11],
        textStyle: { color: token("ink"), fontSize: 13, fontWeight: "normal" },
        extraCssText: "box-shadow: 0 4px 18px rgba(0,0,0,.14); border-radius: 8px;",
        axisPointer: { lineStyle: { color: token("muted"), type: "solid", opacity: 0.4 } },
        formatter: (found) => tip(formatter(found)),
      },
      grid: { left: 8, right: 16, top: 14, bottom: 26, outerBoundsMode: "same", outerBoundsContain: "axisLabel" },
      small,
    };
  }

  function value(axis, more) {
    return Object.assign({
      type: "value", axisLine: { show: false }, axisTick: { show: false },
      splitLine: { lineStyle: { color: token("line") } },
      axisLabel: { color: token("muted"), fontSize: 12, hideOverlap: true },
      nameTextStyle: { color: token("muted"), fontSize: 12 }, splitNumber: 4,
    }, more || {});
  }

  function category(labels, more) {
    return Object.assign({
      type: "category", data: labels, axisTick: { show: false },
      axisLine: { lineStyle: { color: token("line") } },
      axisLabel: { color: token("muted"), fontSize: 12, hideOverlap: true },
      nameTextStyle: { color: token("muted"), fontSize: 12 },
    }, more || {});
  }

  function named(text, gap) {
    return { name: text, nameLocation: "middle", nameGap: gap || 26 };
  }

  function line(numbers, values, what, unit, more) {
    const options = base((found) => {
      const point = found[0];
      return [unit + " " + numbers[point.dataIndex], what(values[point.dataIndex])];
    }, "axis");
    options.xAxis = category(numbers, Object.assign(named(unit), { boundaryGap: false }));
    options.yAxis = value("y", Object.assign({ scale: false }, more && more.axis));
    options.grid.bottom = 40;
    options.series = [{
      type: "line", data: values, symbol: "circle", symbolSize: values.length > 40 ? 0 : 6, showSymbol: values.length <= 40,
      lineStyle: { width: 2 }, itemStyle: { color: token("accent") }, connectNulls: true, ...(more && more.series),
    }];
    return options;
  }

  const PLOTS = {
    pretrain() {
      const losses = data.curves.pretrain;
      return line(losses.map((_, n) => n + 1), losses, (v) => "loss " + Number(v).toPrecision(4), "pass");
    },
    kl() {
      const updates = data.curves.updates;
      return line(updates.map((u) => u.number), updates.map((u) => u.kl), (v) => (v === null ? "not measured" : "KL " + v.toPrecision(4)), "update", { axis: { scale: true } });
    },
    change() {
      const updates = data.curves.updates.filter((u) => u.change !== null);
      const tol = data.curves.tol;
      const most = Math.max(...updates.map((u) => u.change), 0.001);
      const mark = tol ? { markLine: { silent: true, symbol: "none", data: [{ yAxis: tol }], lineStyle: { color: token("muted"), type: "dashed" }, label: { formatter: "tol", position: "insideStartTop", color: token("muted"), fontSize: 12 } } } : {};
      const digits = most > 0.05 ? 0 : 1;
      return line(updates.map((u) => u.number), updates.map((u) => u.change), (v) => percent(v, 3) + " of the rows", "update", { axis: { axisLabel: { color: token("muted"), fontSize: 12, formatter: (v) => percent(v, digits) } }, series: mark });
    },
    sizes() {
      const sizes = data.sizes;
      const options = base((found) => [title(sizes[found.dataIndex][0]), count(sizes[found.dataIndex][1]) + " rows"]);
      const most = narrow() ? 14 : 34;
      options.xAxis = value("x", { axisLabel: { color: token("muted"), fontSize: 12, hideOverlap: true, formatter: count }, position: "bottom" });
      options.yAxis = category(sizes.map((s) => short(title(s[0]), most)), { inverse: true, axisLine: { show: false }, axisLabel: { color: token("ink"), fontSize: 12, interval: 0 } });
      options.grid.right = narrow() ? 52 : 70;
      options.series = [{
        type: "bar", barMaxWidth: 16, barCategoryGap: "30%",
        data: sizes.map((s, n) => ({ value: s[1], itemStyle: { color: color(n), borderRadius: 2 } })),
        label: { show: true, position: "right", color: token("muted"), fontSize: 12, formatter: (p) => count(p.value) },
      }];
      return options;
    },
    map() {
      const map = data.map;
      const chosen = document.getElementById("highlight").value;
      const options = base((found) => pointLines(found.value[2]));
      const hidden = { show: false, min: -1.06, max: 1.06, type: "value" };
      options.xAxis = hidden;
      options.yAxis = hidden;
      options.grid = { left: 0, right: 0, top: 8, bottom: 0 };
      const bySeries = map.clusters.map(() => []);
      map.cluster.forEach((c, n) => bySeries[c].push([map.x[n], map.y[n], n]));
      const most = COLORS.light.length;
      const size = map.x.length > 800 ? 6 : 8;
      options.series = map.clusters.map((cluster, c) => {
        const other = chosen !== "" && Number(chosen) !== c;
        const one = chosen !== "" && !other;
        const paint = one ? (c < most ? color(c) : token("accent")) : color(c < most ? c : undefined);
        return {
          type: "scatter", data: bySeries[c], symbolSize: one ? size + 2 : size, z: one ? 4 : c < most ? 3 : 2,
          symbol: SYMBOLS[Math.floor(Math.min(c, most - 1) / 5) % 2 ? 1 : 0],
          itemStyle: { color: paint, opacity: other ? 0.12 : 0.82, borderColor: token("surface"), borderWidth: 0.5 },
          emphasis: { scale: 1.8, itemStyle: { opacity: 1, borderColor: token("ink"), borderWidth: 1.5 } },
        };
      });
      options.series.push({
        type: "scatter", silent: true, symbolSize: 0.1, z: 6, tooltip: { show: false },
        data: map.clusters.map((_, c) => c).filter((c) => (chosen === "" ? c < most : Number(chosen) === c) && bySeries[c].length).map((c) => ({
          value: middle(bySeries[c]),
          label: {
            show: true, formatter: () => String(map.clusters[c].id), // a name would hide rows
            color: token("ink"), fontSize: 12, fontWeight: 600, position: "inside",
            backgroundColor: token("surface"), padding: [2, 5], borderRadius: 4, borderColor: color(c), borderWidth: 1.5, opacity: 0.95,
          },
        })),
        labelLayout: { hideOverlap: false, moveOverlap: "shiftY" },
      });
      return options;
    },
    confidence() {
      const found = data.confidence;
      const total = found.all.reduce((a, b) => a + b, 0);
      const options = base((point) => [from(point.dataIndex), count(found.all[point.dataIndex]) + " rows, " + percent(found.all[point.dataIndex] / total)]);
      options.xAxis = category(found.all.map((_, n) => (n / found.bins).toFixed(2)), Object.assign(named("confidence"), { axisLabel: { color: token("muted"), fontSize: 12, interval: 4, formatter: (v) => Number(v).toFixed(2) } }));
      options.yAxis = value("y", { axisLabel: { color: token("muted"), fontSize: 12, formatter: (v) => (v >= 1e6 ? v / 1e6 + " M" : count(v)) } });
      options.grid.bottom = 40;
      options.series = [{ type: "bar", data: found.all, barCategoryGap: "8%", itemStyle: { color: token("accent"), borderRadius: [2, 2, 0, 0] } }];
      return options;
    },
    confidences() {
      const found = data.confidence;
      const cells = [];
      found.by_cluster.forEach((counts, c) => {
        const most = Math.max(...counts, 1);
        counts.forEach((rows, n) => { if (rows) cells.push([n, c, rows / most, rows]); });
      });
      const options = base((point) => [title(found.clusters[point.value[1]]), "confidence " + from(point.value[0]), count(point.value[3]) + " rows"]);
      options.xAxis = category(Array.from({ length: found.bins }, (_, n) => (n / found.bins).toFixed(2)), Object.assign(named("confidence"), { axisLabel: { color: token("muted"), fontSize: 12, interval: 4 }, splitArea: { show: false } }));
      options.yAxis = category(found.clusters.map((id) => short(title(id), narrow() ? 12 : 22)), { inverse: true, axisLine: { show: false }, axisLabel: { color: token("ink"), fontSize: 12, interval: 0 } });
      options.grid.bottom = 40;
      options.visualMap = { show: false, min: 0, max: 1, dimension: 2, inRange: { color: [token("faint"), token("accent")] } };
      options.series = [{ type: "heatmap", data: cells, itemStyle: { borderColor: token("surface"), borderWidth: 1, borderRadius: 2 } }];
      return options;
    },
    heat() {
      const heat = data.heat;
      const cells = [];
      heat.cells.forEach((row, c) => row.forEach((v, f) => { if (v !== null) cells.push([f, c, Math.max(-3, Math.min(3, v)), v]); }));
      const options = base((point) => [title(heat.clusters[point.value[1]]), heat.features[point.value[0]], (point.value[3] > 0 ? "+" : "−") + Math.abs(point.value[3]).toFixed(2) + " standard deviations"]);
      options.xAxis = category(heat.features.map((name) => short(name, 18)), { position: "top", axisLine: { show: false }, axisLabel: { color: token("ink"), fontSize: 12, rotate: heat.features.length > 8 || narrow() ? 60 : 0, interval: 0 } });
      options.yAxis = category(heat.clusters.map((id) => short(title(id), narrow() ? 10 : 26)), { inverse: true, axisLine: { show: false }, axisLabel: { color: token("ink"), fontSize: 12, interval: 0 } });
      options.grid.bottom = 56;
      options.visualMap = {
        min: -3, max: 3, dimension: 2, calculable: false, orient: "horizontal", left: "center", bottom: 0, itemWidth: 12, itemHeight: 140,
        text: ["3 sd above all other rows", "3 sd below"], textStyle: { color: token("muted"), fontSize: 12 },
        inRange: { color: theme() === "dark" ? ["#6fb1ff", "#2f5f9e", "#20242b", "#a4561f", "#ffa15c"] : ["#1f5ea8", "#9cc0e6", "#f3f3ef", "#f0b48a", "#b8500c"] },
      };
      options.series = [{ type: "heatmap", data: cells, itemStyle: { borderColor: token("surface"), borderWidth: 1 }, emphasis: { itemStyle: { borderColor: token("ink"), borderWidth: 1.5 } } }];
      return options;
    },
    flow() {
      const bands = data.flow.bands;
      const options = base((point) => (point.dataType === "edge"
        ? [point.data.from + " → " + point.data.to, count(point.data.value) + " rows, " + point.data.kind]
        : [title(point.name.slice(1)), (point.name[0] === "a" ? "before: " : data.flow.refused ? "by the refused model: " : "after: ") + count(point.value) + " rows of the sample in the bands shown"]));
      const nodes = new Map();
      const look = (name, id) => (data.flow.refused && name[0] === "b"
        ? { color: token("surface"), borderColor: colorOf(id), borderWidth: 2 }
        : { color: colorOf(id), borderWidth: 0 });
      bands.forEach(([before, after]) => { nodes.set("a" + before, before); nodes.set("b" + after, after); });
      options.series = [{
        type: "sankey", left: 2, right: 2, top: 14, bottom: 14, nodeGap: 9, nodeWidth: 12, draggable: false, layoutIterations: 64,
        data: Array.from(nodes, ([name, id]) => ({ name, itemStyle: look(name, id), label: { position: name[0] === "a" ? "right" : "left", formatter: () => short(title(id), narrow() ? 14 : 34) } })),
        links: bands.map(([before, after, rows, kind]) => ({ source: "a" + before, target: "b" + after, value: rows, kind, from: String(before), to: String(after) })),
        label: { color: token("ink"), fontSize: 12 }, lineStyle: { color: "source", opacity: 0.38, curveness: 0.5 }, emphasis: { lineStyle: { opacity: 0.7 } },
      }];
      return options;
    },
    since() {
      const changes = data.since.changes.slice(0, 20);
      const options = base((points) => {
        const row = changes[points[0].dataIndex];
        return [title(row.id), "last night " + (row.before === null ? "–" : count(row.before)), "tonight " + (row.now === null ? "–" : count(row.now))];
      }, "axis");
      options.tooltip.axisPointer.type = "shadow";
      options.legend = { top: 0, left: 0, itemWidth: 12, itemHeight: 12, textStyle: { color: token("muted"), fontSize: 12 } };
      options.xAxis = value("x", { axisLabel: { color: token("muted"), fontSize: 12, hideOverlap: true, formatter: count } });
      options.yAxis = category(changes.map((row) => short(title(row.id), narrow() ? 12 : 26)), { inverse: true, axisLine: { show: false }, axisLabel: { color: token("ink"), fontSize: 12, interval: 0 } });
      options.grid.top = 34;
      options.series = [
        { name: "last night", type: "bar", barMaxWidth: 9, data: changes.map((row) => row.before), itemStyle: { color: color(undefined), borderRadius: 2 } },
        { name: "tonight", type: "bar", barMaxWidth: 9, barGap: "10%", data: changes.map((row) => row.now), itemStyle: { color: token("accent"), borderRadius: 2 } },
      ];
      return options;
    },
    time() {
      const stages = data.times.stages;
      const estimated = stages.some((stage) => stage.estimated !== null);
      const options = base((points) => {
        const stage = stages[points[0].dataIndex];
        return [stage.name, stage.seconds.toFixed(1) + " s", stage.estimated === null ? "" : (stage.upper_bound ? "at most " : "") + stage.estimated.toFixed(1) + " s estimated"];
      }, "axis");
      options.tooltip.axisPointer.type = "shadow";
      options.xAxis = value("x", Object.assign(named("seconds"), { axisLabel: { color: token("muted"), fontSize: 12, hideOverlap: true, formatter: count } }));
      options.yAxis = category(stages.map((stage) => stage.name), { inverse: true, axisLine: { show: false }, axisLabel: { color: token("ink"), fontSize: 12, interval: 0 } });
      options.grid.bottom = 40;
      options.series = [{ name: "actual", type: "bar", barMaxWidth: 12, data: stages.map((stage) => stage.seconds), itemStyle: { color: token("accent"), borderRadius: 2 } }];
      if (estimated) {
        options.grid.top = 34;
        options.legend = { top: 0, left: 0, itemWidth: 12, itemHeight: 12, textStyle: { color: token("muted"), fontSize: 12 } };
        options.series.push({ name: "estimated", type: "scatter", symbol: "rect", symbolSize: [3, 16], data: stages.map((stage) => stage.estimated), itemStyle: { color: token("ink") }, z: 4 });
      }
      return options;
    },
  };

  const from = (bin) => (bin / data.confidence.bins).toFixed(2) + " – " + ((bin + 1) / data.confidence.bins).toFixed(2);

  /* The point nearest to a cluster's median: the mean of a crescent would lie outside of it. */
  function middle(points) {
    const median = [0, 1].map((axis) => points.map((p) => p[axis]).sort((a, b) => a - b)[Math.floor(points.length / 2)]);
    const far = (p) => (p[0] - median[0]) ** 2 + (p[1] - median[1]) ** 2;
    return points.reduce((best, p) => (far(p) < far(best) ? p : best)).slice(0, 2);
  }

  /* ------------------------------------------------------------------ the map: hover, tap, keys */
  function pointLines(n) {
    const map = data.map;
    const cluster = map.clusters[map.cluster[n]];
    return [map.key[n], cluster.title + ", confidence " + map.confidence[n].toFixed(2)].concat((map.profile[cluster.id] || []).map((text) => "· " + text));
  }

  function showDetail(n) {
    const map = data.map;
    const cluster = map.clusters[map.cluster[n]];
    const panel = document.getElementById("map-detail");
    panel.replaceChildren();
    panel.append(make("h3", cluster.title));
    if (map.sheet) {
      const sheet = map.sheet;
      const scale = 96 / Math.max(sheet.width, sheet.height);
      const tile = make("div", undefined, { class: "tile", role: "img", "aria-label": "Row " + map.key[n] });
      tile.style.width = sheet.width * scale + "px";
      tile.style.height = sheet.height * scale + "px";
      tile.style.backgroundImage = 'url("' + sheet.image + '")';
      tile.style.backgroundSize = sheet.columns * sheet.width * scale + "px " + sheet.rows * sheet.height * scale + "px";
      tile.style.backgroundPosition = -(n % sheet.columns) * sheet.width * scale + "px " + -Math.floor(n / sheet.columns) * sheet.height * scale + "px";
      panel.append(tile);
    }
    const facts = make("dl");
    const second = map.clusters.find((c) => c.id === map.runner_up[n]);
    [["key", map.key[n]], ["confidence", map.confidence[n].toFixed(3)], ["runner-up", second ? second.title : "Cluster " + map.runner_up[n]]].forEach(([name, text]) => {
      facts.append(make("dt", name), make("dd", text));
    });
    panel.append(facts);
    const profile = map.profile[cluster.id] || [];
    if (profile.length) {
      panel.append(make("p", "Typical features", { class: "label" }));
      const list = make("ul");
      profile.forEach((text) => list.append(make("li", text)));
      panel.append(list);
    }
  }

  function wireMap() {
    const node = document.getElementById("plot-map");
    if (!node) return;
    const map = data.map;
    const chart = charts.get("map");
    // From cluster to cluster, and within one from left to right.
    const order = map.x.map((_, n) => n).sort((a, b) => map.cluster[a] - map.cluster[b] || map.x[a] - map.x[b]);
    let at = -1;
    const show = (n) => {
      const series = map.cluster[n];
      const index = map.cluster.slice(0, n).filter((c) => c === series).length;
      chart.dispatchAction({ type: "downplay" });
      chart.dispatchAction({ type: "highlight", seriesIndex: series, dataIndex: index });
      showDetail(n);
    };
    const pick = (event) => { if (event.value && event.value.length > 2) showDetail(event.value[2]); };
    chart.on("click", pick);
    chart.on("mouseover", pick);
    node.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const chosen = document.getElementById("highlight").value;
      const within = chosen === "" ? order : order.filter((n) => map.cluster[n] === Number(chosen));
      if (!within.length) return;
      at = (at + step + within.length) % within.length;
      show(within[at]);
    });
    document.getElementById("highlight").addEventListener("change", () => { at = -1; draw("map"); });
  }

  /* --------------------------------------------------------------------------- drawing, themes */
  function draw(name) {
    const node = document.getElementById("plot-" + name);
    if (!node) return;
    try {
      let chart = charts.get(name);
      if (!chart) {
        chart = echarts.init(node, null, { renderer: "svg", locale: "EN" });
        charts.set(name, chart);
      }
      const options = PLOTS[name]();
      delete options.small;
      chart.setOption(options, { notMerge: true });
    } catch (error) {
      node.replaceChildren(make("p", "This chart cannot be drawn; the table has the numbers.", { class: "note" }));
      console.error(name, error);
    }
  }

  function drawAll() {
    Object.keys(PLOTS).forEach(draw);
    document.querySelectorAll(".swatch").forEach((node) => { node.style.background = color(Number(node.dataset.order)); });
  }

  function wireTheme() {
    const button = document.getElementById("theme");
    const show = () => {
      button.textContent = theme() === "dark" ? "Light" : "Dark";
      button.setAttribute("aria-label", "Change to " + (theme() === "dark" ? "light" : "dark") + " colors");
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = theme() === "dark" ? "light" : "dark";
      try { localStorage.setItem("dec-report-theme", root.dataset.theme); } catch (error) { /* kept until the page is closed */ }
      show();
      drawAll();
    });
    dark.addEventListener("change", () => { show(); drawAll(); });
    show();
  }

  function wirePrint() {
    const start = () => {
      if (printing) return;
      printing = true;
      // Width of A4 without margins, in CSS pixels.
      const main = document.getElementById("main");
      main.style.width = "680px";
      drawAll();
      charts.forEach((chart) => chart.resize({ width: Math.min(chart.getDom().clientWidth, 640) }));
    };
    const end = () => {
      if (!printing) return;
      printing = false;
      document.getElementById("main").style.width = "";
      charts.forEach((chart) => chart.resize({ width: "auto" }));
      drawAll();
    };
    window.addEventListener("beforeprint", start);
    window.addEventListener("afterprint", end);
  }

  function wireContents() {
    if (!("IntersectionObserver" in window)) return;
    const links = new Map(Array.from(document.querySelectorAll(".contents a"), (link) => [link.getAttribute("href").slice(1), link]));
    const seen = new IntersectionObserver((entries) => {
      entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
        links.forEach((link) => link.removeAttribute("aria-current"));
        links.get(entry.target.id).setAttribute("aria-current", "true");
      });
    }, { rootMargin: "-10% 0px -80% 0px" });
    links.forEach((_, id) => seen.observe(document.getElementById(id)));
  }

  drawAll();
  wireMap();
  wireTheme();
  wirePrint();
  wireContents();
  let width = window.innerWidth;
  let waiting;
  window.addEventListener("resize", () => {
    if (printing || window.innerWidth === width) return; // bars of a phone's browser show and hide
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => { charts.forEach((chart) => chart.resize()); drawAll(); }, 120);
  });
  root.dataset.ready = "true";
})();
