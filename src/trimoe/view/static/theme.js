// Applied before the first paint: the stored mode, or the system's.
"use strict";
{
  const kept = localStorage.getItem("theme");
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
}
