"use strict";
// The table is whole without this: it only puts rows in another order, and hides some.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0], rows = [...body.rows];
  const value = (row, index) => row.cells[index].dataset.value ?? row.cells[index].textContent;
  for (const [index, head] of [...table.tHead.rows[0].cells].entries()) {
    head.querySelector("button")?.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const numbers = head.classList.contains("right");
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compared = (one, two) => numbers
        ? (Number(value(one, index)) || 0) - (Number(value(two, index)) || 0)
        : value(one, index).localeCompare(value(two, index), undefined, { numeric: true });
      body.append(...rows.sort((one, two) => down ? compared(two, one) : compared(one, two)));
    });
  }
  const field = document.getElementById(table.dataset.filter), said = document.getElementById(table.dataset.count);
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
