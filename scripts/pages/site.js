// What every page can do: fold its menu on a phone, find words in all pages. Nothing is asked of a server.
"use strict";
(() => {
  const root = document.body.dataset.root, box = document.getElementById("search");
  const found = document.getElementById("found");
  const MOST = 24;
  let chosen = -1;

  const menu = document.querySelector(".side .menu"), narrow = matchMedia("(max-width: 52rem)");
  const fold = () => { menu.open = !narrow.matches; };
  fold();
  narrow.addEventListener("change", fold);
  const here = menu.querySelector("[aria-current]");
  if (here && menu.open) here.scrollIntoView({block: "nearest"});

  // The index is a script, for a page on a disk may not read other files; it is asked for when it is needed.
  let asked = null;
  const index = () => asked ??= new Promise((ready, failed) => {
    const script = document.createElement("script");
    script.src = `${root}/search.js`;
    script.onload = () => ready(window.SEARCH);
    script.onerror = () => failed(new Error("search.js is missing"));
    document.head.append(script);
  });

  const numbers = steps => { let at = 0; return steps.split(" ").map(step => at += Number(step)); };

  // The parts that hold all words; the last word may be the beginning of one.
  const holders = (all, words) => {
    let kept = null;
    words.forEach((word, i) => {
      const keys = i + 1 < words.length ? (Object.hasOwn(all, word) ? [word] : [])
                                        : Object.keys(all).filter(key => key.startsWith(word));
      const holding = new Set(keys.flatMap(key => numbers(all[key])));
      kept = kept === null ? holding : new Set([...kept].filter(part => holding.has(part)));
    });
    return kept ?? new Set();
  };

  // Names first, then parts: titles of pages before headings before words.
  const results = (data, text) => {
    const words = text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? [];
    if (!words.length) return [];
    const whole = text.trim().toLowerCase();
    const names = data.names.filter(([name]) => name.toLowerCase().includes(whole))
      .sort(([a], [b]) => (a.toLowerCase() !== whole) - (b.toLowerCase() !== whole) || a.length - b.length)
      .slice(0, 6).map(([name, page, about]) => ({href: `${data.pages[page][0]}#${name}`, head: name,
                                                    of: data.pages[page][1], about, code: true}));
    const holds = (text, word) => text.toLowerCase().includes(word);
    const score = ([page, anchor, title]) => words.reduce((sum, word) =>
      sum + 3 * holds(title, word) + 2 * holds(data.pages[page][1], word), page && !anchor);    // the tour names all
    const parts = [...holders(data.words, words)].map(i => data.parts[i]).map(part => [score(part), part])
      .sort(([a], [b]) => b - a).slice(0, MOST - names.length)
      .map(([, [page, anchor, title, about]]) => ({href: data.pages[page][0] + (anchor && `#${anchor}`), head: title,
                                                     of: data.pages[page][1], about}));
    return [...names, ...parts];
  };

  const show = rows => {
    chosen = -1;
    found.replaceChildren(...rows.map(({href, head, of, about, code}) => {
      const link = document.createElement("a"), title = document.createElement(code ? "code" : "b");
      const small = document.createElement("small");
      link.href = `${root}/${href}`;
      link.setAttribute("role", "option");
      title.textContent = head;
      small.textContent = [of === head ? "" : of, about].filter(Boolean).join(" · ");
      link.append(title, small);
      return link;
    }));
    if (!rows.length) found.append(Object.assign(document.createElement("p"), {textContent: "nothing found"}));
    found.hidden = false;
  };

  const look = async () => {
    const text = box.value;
    if (!text.trim()) { found.hidden = true; return; }
    try {
      const data = await index();
      if (box.value === text) show(results(data, text));
    } catch (e) {
      found.replaceChildren(Object.assign(document.createElement("p"), {textContent: e.message}));
      found.hidden = false;
    }
  };

  const choose = by => {
    const rows = [...found.querySelectorAll("a")];
    if (!rows.length) return;
    chosen = (chosen + by + rows.length) % rows.length;
    rows.forEach((row, i) => row.classList.toggle("chosen", i === chosen));
    rows[chosen].scrollIntoView({block: "nearest"});
  };

  box.addEventListener("input", look);
  box.addEventListener("focus", look);
  box.addEventListener("keydown", event => {
    const moves = {ArrowDown: 1, ArrowUp: -1};
    if (event.key in moves) { choose(moves[event.key]); event.preventDefault(); }
    if (event.key === "Escape") { found.hidden = true; box.blur(); }
    if (event.key === "Enter") found.querySelectorAll("a")[Math.max(chosen, 0)]?.click();
  });
  document.addEventListener("click", event => {
    if (!event.target.closest(".search") || event.target.closest("#found a")) found.hidden = true;
  });
  document.addEventListener("keydown", event => {
    const writes = event.target.closest("input, select, textarea");
    if (event.key === "/" && !writes) { box.focus(); event.preventDefault(); }
  });
})();
