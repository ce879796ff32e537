// A click on Run belongs to the methods that are chosen: until their fields are drawn, it waits.
(() => {
  const chosen = (part) => document.querySelector(`#${part} input`)?.value;
  const drawn = () => {
    const mark = document.querySelector("#drawn i")?.dataset;
    return mark && mark.first === chosen("first") && mark.second === chosen("second");
  };
  let waiting = false;
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("#run");
    if (!button || (drawn() && !waiting)) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    if (waiting) return;
    waiting = true;
    button.setAttribute("aria-busy", "true");
    const clock = setInterval(() => {
      if (!drawn()) return;
      clearInterval(clock);
      waiting = false;
      button.removeAttribute("aria-busy");
      document.querySelector("#run").click();
    }, 50);
  }, true);
})();
