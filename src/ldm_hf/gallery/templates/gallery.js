// Tables that sort, search and page, by DataTables; without scripts they are tables all the same.
for (const table of document.querySelectorAll("table[data-sorts]")) {
  const { default: DataTable } = await import("./dataTables.js");
  const size = Number(table.dataset.pages);
  const asked = new URLSearchParams(location.search).get("q") ?? "";
  new DataTable(table, {
    paging: Boolean(size),
    pageLength: size || 10,
    order: [],
    columnDefs: [{ targets: "number", orderSequence: ["desc", "asc", ""] }],
    autoWidth: false,
    search: { search: asked },
    language: { search: "Search", searchPlaceholder: "library, name, reason" },
    lengthMenu: [25, 50, 200, { label: "all", value: -1 }],
  });
}
