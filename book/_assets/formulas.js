/* A formula wider than its page scrolls in a box of its own; such a box can be reached by the keyboard. For tables and code
 * the theme does that. */
(function () {
  "use strict";
  const article = document.querySelector("article");
  if (!article) return;
  const reach = () => article.querySelectorAll("div.math mjx-container").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
  new ResizeObserver(reach).observe(article); // MathJax draws later, which changes the size too
})();
