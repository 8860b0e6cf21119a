"use strict";
// Filters of the rollout cards. The page reads without this script.
const form = document.querySelector(".filters");
if (form) {
  const cards = [...document.querySelectorAll("details.card")];
  const toggle = form.elements.toggle;
  const show = () => {
    let shown = 0;
    for (const card of cards) {
      const fits = ["step", "kind", "health"].every((key) => !form.elements[key].value || card.dataset[key] === form.elements[key].value);
      card.hidden = !fits;
      shown += fits;
    }
    form.querySelector("output").textContent = `${shown} of ${cards.length} shown`;
  };
  toggle.addEventListener("click", () => {
    const open = toggle.textContent === "open all";
    for (const card of cards) if (!card.hidden) card.open = open;
    toggle.textContent = open ? "close all" : "open all";
  });
  form.addEventListener("change", show);
  form.hidden = false;
  show();
}
