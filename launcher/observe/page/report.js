// The report's page: its charts and its buttons. `charts.js` comes before it.
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  document.body.classList.add("live");
  showCharts(document, data);
  addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details")) one.open = true; });
  for (const button of document.querySelectorAll("[data-copy]"))
    button.addEventListener("click", async () => {
      const text = button.parentElement.querySelector("code").textContent;
      try { await navigator.clipboard.writeText(text); } catch {
        const area = document.body.appendChild(Object.assign(document.createElement("textarea"), { value: text }));
        area.select(); document.execCommand("copy"); area.remove();
      }
      button.textContent = data.words.copied;
      setTimeout(() => { button.textContent = data.words.copy; }, 1500);
    });
})();
