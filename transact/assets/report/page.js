"use strict";
// Draws the figures that stand in the page as JSON, in the colours of the page's style.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 600px)");
  const still = matchMedia("(pointer: coarse)");
  const charts = [...document.querySelectorAll("figure.chart")];

  const styled = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // A colour may be the name of a variable of the style.
  const coloured = (value, key) => {
    if (Array.isArray(value)) return value.map((each) => coloured(each, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, coloured(each, name)]));
    }
    return key === "color" && typeof value === "string" && value.startsWith("--") ? styled(value) : value;
  };

  // Logarithmic scales: ticks at 1, 2 and 5 times powers of ten, or at powers alone where those would touch.
  const LINE = 20; // pixels that a tick's word needs
  const steps = (low, high) => {
    const found = [];
    for (let power = Math.floor(low) - 1; power <= Math.ceil(high); power += 1) {
      for (const digit of [1, 2, 5]) found.push({ digit, power, value: Number(`${digit}e${power}`) });
    }
    return found;
  };
  const inside = (each, low, high) => Math.log10(each.value) >= low - 1e-9 && Math.log10(each.value) <= high + 1e-9;
  const worded = (value) => (value >= 1e-4 && value < 1e7 ? value.toLocaleString("en-US", { maximumSignificantDigits: 1 }) : value.toExponential(0));
  const ticksOf = (low, high, pixels) => {
    const all = steps(low, high).filter((each) => inside(each, low, high));
    const room = (decades) => decades * pixels / Math.max(high - low, 1e-9) >= LINE;
    const apart = [1, 2, 3, 5, 10].find((decades) => room(decades)) ?? 20;
    const kept = room(Math.log10(2)) ? all : all.filter((each) => each.digit === 1 && each.power % apart === 0);
    return { tickvals: kept.map((each) => each.value), ticktext: kept.map((each) => worded(each.value)) };
  };
  // The ends of an axis are such steps too, so that any data has two at least.
  const rangeOf = (values) => {
    const logs = values.filter((value) => typeof value === "number" && value > 0).map(Math.log10);
    if (!logs.length) return null;
    const lowest = Math.min(...logs), highest = Math.max(...logs), every = steps(lowest, highest).map((each) => Math.log10(each.value));
    const low = Math.max(...every.filter((each) => each <= lowest + 1e-9));
    const high = Math.min(...every.filter((each) => each >= highest - 1e-9 && each > low + 1e-9));
    return [low, high];
  };
  const scaled = (layout, data, pixels) => {
    for (const [name, given] of Object.entries(layout)) {
      if (!/^yaxis\d*$/.test(name) || given.type !== "log") continue;
      const axisName = name.replace("axis", "");
      const range = given.range ?? rangeOf(data.filter((trace) => (trace.yaxis ?? "y") === axisName).flatMap((trace) => trace.y));
      if (range) layout[name] = { ...given, range, ...ticksOf(...range, pixels) };
    }
    return layout;
  };

  // Bytes are levels between two ends; what is shown on hovering is the figure itself.
  const decoded = (trace, height) => {
    const { bytes, columns, levels, ...rest } = trace;
    const raw = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
    const z = [], customdata = [];
    for (let start = 0; start < raw.length; start += columns) {
      const row = Array.from(raw.subarray(start, start + columns), (byte) => levels.low + (levels.high - levels.low) * byte / 255);
      z.push(row);
      customdata.push(levels.is_logarithm ? row.map((value) => 10 ** value) : row);
    }
    const scale = [0, 1, 2, 3].map((step) => [step / 3, styled(`--heat-${step}`)]);
    const marks = ticksOf(levels.low, levels.high, 0.4 * height);
    const ticks = levels.is_logarithm ? { ...marks, tickvals: marks.tickvals.map(Math.log10) } : { tickformat: ".0%" };
    return { ...rest, z, customdata, colorscale: scale, zmin: levels.low, zmax: levels.high, colorbar: { ...rest.colorbar, ...ticks } };
  };

  const axis = (given) => ({
    gridcolor: styled("--grid"), linecolor: styled("--rule"), zerolinecolor: styled("--grid"), automargin: true, ...given,
    title: { standoff: 8, ...given.title },
  });

  const layoutOf = (given) => {
    const layout = coloured(given);
    for (const name of Object.keys(layout)) if (/^[xy]axis\d*$/.test(name)) layout[name] = axis(layout[name]);
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { color: styled("--text"), family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { bgcolor: styled("--page"), bordercolor: styled("--rule"), font: { color: styled("--text") } },
      margin: { l: 48, r: 12, t: 34, b: 40 },
      legend: { orientation: "h", x: 0, y: -0.22, yanchor: "top" },
      dragmode: still.matches ? false : "zoom",
      ...layout,
    };
  };

  const draw = (chart) => {
    const views = JSON.parse(document.getElementById(`${chart.id}-data`).textContent);
    const chooser = document.getElementById(`${chart.id}-view`);
    const figure = views[chooser ? Number(chooser.value) : 0];
    const drawing = document.getElementById(`${chart.id}-drawing`);
    const height = drawing.clientHeight;
    const data = figure.data.map((trace) => (trace.bytes === undefined ? coloured(trace) : decoded(trace, height)));
    const layout = scaled(layoutOf(figure.layout), data, 0.6 * height);
    if (narrow.matches) for (const trace of data) if (trace.colorbar) trace.colorbar.title = { text: "" };
    return Plotly.react(drawing, data, layout, { displayModeBar: false, responsive: true, displaylogo: false }).then(() => rescale(drawing));
  };

  // After a zoom, which may leave less than two of the ticks, the axis finds its own.
  const rescale = (drawing) => {
    drawing.removeAllListeners("plotly_relayout");
    drawing.on("plotly_relayout", (changed) => {
      const update = {};
      for (const name of Object.keys(drawing.layout)) {
        if (drawing.layout[name]?.type !== "log" || changed[`${name}.range[0]`] === undefined) continue;
        const marks = ticksOf(...drawing.layout[name].range, 0.6 * drawing.clientHeight);
        Object.assign(update, marks.tickvals.length > 1
          ? { [`${name}.tickmode`]: "array", [`${name}.tickvals`]: marks.tickvals, [`${name}.ticktext`]: marks.ticktext }
          : { [`${name}.tickmode`]: "auto" });
      }
      if (Object.keys(update).length) Plotly.relayout(drawing, update);
    });
  };

  const drawAll = () => Promise.all(charts.map(draw)).then(() => document.documentElement.setAttribute("data-drawn", charts.length));

  for (const chart of charts) {
    const chooser = document.getElementById(`${chart.id}-view`);
    if (chooser) chooser.addEventListener("change", () => draw(chart));
  }
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  drawAll();

  const box = document.getElementById("reload");
  if (box) {
    const remembered = { get: () => { try { return sessionStorage.getItem("reload"); } catch { return null; } } };
    const remember = (value) => { try { sessionStorage.setItem("reload", value); } catch { /* not for files here */ } };
    let timer = null;
    const obey = () => {
      clearTimeout(timer);
      if (box.checked) timer = setTimeout(() => location.reload(), 60000);
      remember(box.checked ? "yes" : "no");
    };
    box.checked = remembered.get() === "yes";
    box.addEventListener("change", obey);
    obey();
  }
})();
