// Before the first paint: the mode that was chosen here, or the system's.
"use strict";
{
  const kept = localStorage.getItem("theme");
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
}
