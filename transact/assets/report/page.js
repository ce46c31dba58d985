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

  // Bytes are levels between two ends; what is shown on hovering is the figure itself.
  const decoded = (trace) => {
    const { bytes, columns, levels, ...rest } = trace;
    const raw = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
    const z = [], customdata = [];
    for (let start = 0; start < raw.length; start += columns) {
      const row = Array.from(raw.subarray(start, start + columns), (byte) => levels.low + (levels.high - levels.low) * byte / 255);
      z.push(row);
      customdata.push(levels.is_logarithm ? row.map((value) => 10 ** value) : row);
    }
    const scale = [0, 1, 2, 3].map((step) => [step / 3, styled(`--heat-${step}`)]);
    const whole = [];
    for (let power = Math.ceil(levels.low); power <= levels.high; power += 1) whole.push(power);
    const powers = whole.length > 1 ? whole : [levels.low, (levels.low + levels.high) / 2, levels.high];
    const ticks = levels.is_logarithm
      ? { tickvals: powers, ticktext: powers.map((power) => Number((10 ** power).toPrecision(2)).toString()) }
      : { tickformat: ".0%" };
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
      margin: { l: 48, r: 12, t: 24, b: 40 },
      legend: { orientation: "h", x: 0, y: -0.22, yanchor: "top" },
      dragmode: still.matches ? false : "zoom",
      ...layout,
    };
  };

  const draw = (chart) => {
    const views = JSON.parse(document.getElementById(`${chart.id}-data`).textContent);
    const chooser = document.getElementById(`${chart.id}-view`);
    const figure = views[chooser ? Number(chooser.value) : 0];
    const data = figure.data.map((trace) => (trace.bytes === undefined ? coloured(trace) : decoded(trace)));
    const layout = layoutOf(figure.layout);
    if (narrow.matches) for (const trace of data) if (trace.colorbar) trace.colorbar.title = { text: "" };
    const drawing = document.getElementById(`${chart.id}-drawing`);
    return Plotly.react(drawing, data, layout, { displayModeBar: false, responsive: true, displaylogo: false });
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
