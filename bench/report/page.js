"use strict";
// A table is whole without this: it only puts rows in another order, and hides some.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const value = (row, index) => row.cells[index].dataset.value ?? row.cells[index].textContent;
  // 0.83±1.5% is 0.83, 8k is 8192 tokens; what is no number counts as the largest.
  const number = text => {
    const found = Number.parseFloat(text);
    return Number.isNaN(found) ? Infinity : text.endsWith("k") ? 1024 * found : found;
  };
  for (const [index, head] of heads.entries()) {
    head.firstElementChild.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const numbers = head.classList.contains("right");
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compared = (one, two) => numbers
        ? number(value(one, index)) - number(value(two, index)) || 0
        : value(one, index).localeCompare(value(two, index), undefined, { numeric: true });
      body.append(...rows.sort((one, two) => down ? compared(two, one) : compared(one, two)));
    });
  }
  const controls = table.parentElement.previousElementSibling;
  if (!controls?.matches(".controls")) continue;
  const field = controls.querySelector("input"), said = controls.querySelector("output");
  // Cell by cell: joined without a gap, 16, 4 and q128 would hold 64q.
  const text = row => [...row.cells].map(cell => cell.textContent).join("\n").toLowerCase();
  const texts = new Map(rows.map(row => [row, text(row)]));
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !words.every(word => texts.get(row).includes(word));
      shown += !row.hidden;
    }
    said.textContent = `${shown} of ${rows.length} shown`;
  };
  field.addEventListener("input", filter);
  filter();
}
