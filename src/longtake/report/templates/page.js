"use strict";
// Filters and order of cards. The page reads without this script.
for (const form of document.querySelectorAll(".filters")) {
  const cards = [...form.parentElement.querySelectorAll("details.card")];
  const selects = [...form.querySelectorAll("select")];
  const { toggle, sort } = form.elements;
  const show = () => {
    let shown = 0;
    for (const card of cards) {
      const fits = selects.every((one) => one === sort || !one.value || card.dataset[one.name] === one.value);
      card.hidden = !fits;
      shown += fits;
    }
    form.querySelector("output").textContent = `${shown} of ${cards.length} shown`;
  };
  const order = () => {
    const key = sort.value.replace("-", ""), sign = sort.value.startsWith("-") ? 1 : -1;
    const value = (card) => (card.dataset[key] ? sign * Number(card.dataset[key]) : Infinity);
    const sorted = key ? [...cards].sort((a, b) => (value(a) === value(b) ? 0 : value(a) < value(b) ? -1 : 1)) : cards;
    cards[0].parentElement.append(...sorted);
  };
  toggle.addEventListener("click", () => {
    const open = toggle.textContent === "open all";
    for (const card of cards) if (!card.hidden) card.open = open;
    toggle.textContent = open ? "close all" : "open all";
  });
  form.addEventListener("change", (event) => (event.target === sort ? order() : show()));
  form.hidden = false;
  show();
}
