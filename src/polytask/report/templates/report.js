(() => {
  "use strict";

  // -- charts: drawn when they come near the window, all of them before printing
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const holders = [...document.querySelectorAll(".plot[data-figure]")];
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: "hover",
    modeBarButtons: [["toImage"]],
    toImageButtonOptions: { format: "svg", filename: "polytask" },
  };
  const draw = (holder) => {
    if (holder.dataset.drawn || !holder.offsetParent) return;
    holder.dataset.drawn = "yes";
    const figure = figures[Number(holder.dataset.figure)];
    Plotly.newPlot(holder, figure.data, figure.layout, config);
  };
  for (const holder of holders) holder.style.minHeight = `${Number(holder.dataset.height)}px`;
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          draw(entry.target);
          near.unobserve(entry.target);
        }
      }
    },
    { rootMargin: "600px" },
  );
  for (const holder of holders) near.observe(holder);

  // -- verdict table: sort by a column, filter by verdict and name, first rows only
  const table = document.getElementById("verdicts");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const tools = document.querySelector(".tools");
  const find = document.getElementById("find");
  const shown = document.getElementById("shown");
  const chips = [...document.querySelectorAll(".chip")];
  const first = 25;
  let verdict = "";
  let all = rows.length <= first + 15;

  const refresh = () => {
    const text = find ? find.value.trim().toLowerCase() : "";
    let fitting = 0;
    for (const row of body.rows) {
      const fits = (!verdict || row.dataset.verdict === verdict) && row.dataset.name.includes(text);
      fitting += fits ? 1 : 0;
      row.hidden = !fits || (!all && fitting > first);
      row.classList.toggle("more", fits && row.hidden);
    }
    const visible = all ? fitting : Math.min(fitting, first);
    shown.hidden = visible === rows.length;
    shown.firstElementChild.textContent = `${visible} of ${fitting} ${fitting === 1 ? "task" : "tasks"} shown.`;
    shown.querySelector("button").hidden = visible === fitting;
  };
  if (tools) {
    tools.hidden = false;
    find.addEventListener("input", refresh);
    for (const chip of chips) {
      chip.addEventListener("click", () => {
        verdict = chip.dataset.filter;
        for (const other of chips) other.setAttribute("aria-pressed", String(other === chip));
        refresh();
      });
    }
  }
  shown.querySelector("button").addEventListener("click", () => {
    all = true;
    refresh();
  });

  const compare = (kind, column, way) => (a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[column].dataset.value);
    if (x === "" || y === "") return (x === "") - (y === "");
    const step = kind === "number" ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
    return way * step;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const big = head.dataset.sort === "number" && column > 1;
      const way = before === "ascending" ? -1 : before === "descending" ? 1 : big ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      body.append(...rows.slice().sort(compare(head.dataset.sort, column, way)));
      refresh();
    });
  });
  refresh();

  // -- details that open late hold charts that were not drawn yet; printing opens what belongs on paper
  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => {
      for (const holder of details.querySelectorAll(".plot[data-figure]")) draw(holder);
    });
  }
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.print:not([open])")];
    for (const details of opened) details.open = true;
    holders.forEach(draw);
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });
})();
