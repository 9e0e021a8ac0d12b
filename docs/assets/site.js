// What the theme leaves out: a name of the search dialogue, and wide tables that the keyboard can scroll.
const complete = () => {
  document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search");
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap")) {
    table.tabIndex = 0;
    table.setAttribute("role", "region");
    table.setAttribute("aria-label", "Table");
  }
};
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true });
complete();
