"use strict";
// Tables sort by their headers. A cell's data-v is its number, empty where there is none; without it the text counts.
for (const table of document.querySelectorAll("table.sortable")) {
  const [body] = table.tBodies, headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    if (!header.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    const key = (row) => {
      const { dataset, textContent } = row.cells[column];
      if (dataset.v === undefined) return textContent.trim();
      return dataset.v === "" ? null : Number(dataset.v);
    };
    button.addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      for (const each of headers) each.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
        return down ? -order : order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
// A link to a number opens the record that holds it, in browsers that do not do so by themselves.
const reveal = () => {
  const place = location.hash && document.getElementById(location.hash.slice(1));
  if (!place) return;
  for (let each = place.parentElement; each; each = each.parentElement) if (each.localName === "details") each.open = true;
  place.scrollIntoView();
};
addEventListener("hashchange", reveal);
reveal();
