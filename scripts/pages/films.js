// Films: a picture for every state of a few controls (vgnb.views.films), moved by mouse and keyboard.
"use strict";
(() => {
  const INK = "#D55E00", CLOCK = 400;     // of the wipe's line; milliseconds of a picture that is played

  const made = (tag, props = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), props);
    element.append(...children);
    return element;
  };

  const loaded = uri => { const image = new Image(); image.src = uri; return image; };

  class Film {
    constructor(place, data) {
      this.data = data;
      this.axes = data.axes.map(axis => ({...axis}));
      if (data.wiped) this.axes.push(this.wipe(data.panels[0].w));
      this.at = this.axes.map(axis => axis.start);
      this.sprites = data.panels.map(panel => panel.sprites.map(() => null));
      this.build(place);
      this.show();
    }

    // One position for each column of pixels.
    wipe(w) {
      const words = Array.from({length: w + 1}, (_, k) => `${Math.round(100 * k / w)} %`);
      return {name: "wiped", words, start: Math.round(w / 2)};
    }

    // ---- looking up

    get last() { return this.axes.length - 1; }

    // The number of the state among those of the first n axes.
    state(n) { return this.at.slice(0, n).reduce((sum, i, k) => sum * this.axes[k].words.length + i, 0); }

    // Sprites hold a row for each state of the axes but the last; there is one for each position of the first.
    cell(panel, at = this.at) {
      const axes = this.data.axes, played = axes.length - 1;
      let row = 0;
      for (let k = 1; k < played; k++) row = row * axes[k].words.length + at[k];
      const {w, h} = this.data.panels[panel];
      return [at[played] * w, row * h, w, h];
    }

    sprite(panel, first = this.at[0]) {
      const kept = this.sprites[panel];
      if (!kept[first]) {
        kept[first] = loaded(this.data.panels[panel].sprites[first]);
        kept[first].addEventListener("load", () => this.show());
      }
      return kept[first].complete ? kept[first] : null;
    }

    draw(canvas, panel, at = this.at, from = 0) {
      const image = this.sprite(panel, at[0]);
      if (!image) return;
      const [x, y, w, h] = this.cell(panel, at), skip = Math.round(from * w), pen = canvas.getContext("2d");
      if (skip < w) pen.drawImage(image, x + skip, y, w - skip, h, skip, 0, w - skip, h);
    }

    // ---- what stands there

    build(place) {
      const {title, about, panels, wiped, strip} = this.data;
      this.shown = wiped ? [[0, 1], ...panels.slice(2).map((_, k) => [k + 2])] : panels.map((_, k) => [k]);
      this.canvases = this.shown.map(([k]) => made("canvas", {width: panels[k].w, height: panels[k].h}));
      const names = this.shown.map(ks => ks.map(k => panels[k].name).join(" | "));
      const figures = this.canvases.map((canvas, i) => made("div", {className: "panel"}, canvas,
                                                            made("small", {textContent: names[i]})));
      this.stage = made("div", {className: "panels", tabIndex: 0}, ...figures);
      this.stage.classList.toggle("one", figures.length === 1);
      this.stage.setAttribute("role", "img");
      this.row = strip ? this.strip() : null;
      this.caption = made("div", {className: "caption"});
      this.caption.setAttribute("aria-live", "polite");
      this.controls = this.axes.map((axis, k) => this.control(axis, k));
      const controls = made("div", {className: "controls"}, ...this.controls.flatMap(c => c.row));
      this.play = made("button", {className: "play", type: "button", textContent: "▶ play"});
      this.play.addEventListener("click", () => this.playing(!this.timer));
      controls.append(made("span"), this.play, made("span"));
      place.replaceChildren(made("figcaption", {textContent: title}),
                            made("div", {className: "about", textContent: about}),
                            made("div", {className: "body"}, this.stage, made("div", {}, controls, this.caption)),
                            ...(this.row ? [this.row] : []));
      this.listen();
    }

    // Sliders for what has an order, the last axis always; choosers for words.
    control(axis, k) {
      const ordered = k === this.last || axis.words.every(word => !Number.isNaN(parseFloat(word)));
      const id = `film-${this.data.title}-${k}`.replace(/\W+/g, "-");
      const label = made("label", {textContent: axis.name, htmlFor: id});
      const said = made("output");
      const options = axis.words.map((word, i) => made("option", {value: i, textContent: word}));
      const input = ordered ? made("input", {type: "range", min: 0, max: axis.words.length - 1, id})
                            : made("select", {id}, ...options);
      input.addEventListener("input", () => this.move(k, Number(input.value)));
      return {input, said, ordered, row: [label, input, said]};
    }

    strip() {
      const words = this.axes[this.last].words;
      this.small = words.map((word, i) => {
        const canvas = made("canvas", {width: this.data.panels[0].w, height: this.data.panels[0].h});
        const button = made("button", {type: "button"}, canvas, made("div", {textContent: word}));
        button.addEventListener("click", () => this.move(this.last, i));
        return {button, canvas};
      });
      return made("div", {className: "strip"}, ...this.small.map(s => s.button));
    }

    // ---- moving

    move(k, to) {
      const top = this.axes[k].words.length - 1, now = Math.max(0, Math.min(top, to));
      if (now === this.at[k]) return;
      this.at[k] = now;
      this.show();
    }

    // From where the mouse is: across moves the last axis, up and down the one before it, where it has an order.
    follow(event) {
      const box = this.canvases[0].getBoundingClientRect();
      const share = (x, low, size) => Math.max(0, Math.min(1, (x - low) / size));
      const across = share(event.clientX, box.left, box.width), up = 1 - share(event.clientY, box.top, box.height);
      const place = (s, n) => Math.min(n - 1, Math.floor(s * n));
      this.move(this.last, place(across, this.axes[this.last].words.length));
      const k = this.last - 1;
      if (k > 0 && this.controls[k].ordered && !this.data.strip) this.move(k, place(up, this.axes[k].words.length));
    }

    listen() {
      const keys = {ArrowRight: [this.last, 1], ArrowLeft: [this.last, -1], ArrowUp: [this.last - 1, 1],
                    ArrowDown: [this.last - 1, -1]};
      this.stage.addEventListener("keydown", event => {
        if (event.key === " ") this.playing(!this.timer);
        else if (event.key === "Home") this.move(this.last, 0);
        else if (event.key === "End") this.move(this.last, this.axes[this.last].words.length - 1);
        else if (event.key in keys) {
          const [k, by] = keys[event.key];
          this.move(k, this.at[k] + by);
        } else return;
        event.preventDefault();
      });
      this.stage.addEventListener("pointerdown", event => {
        this.playing(false);
        this.stage.setPointerCapture(event.pointerId);
        this.held = true;
        this.follow(event);
      });
      this.stage.addEventListener("pointermove", event => { if (this.held) this.follow(event); });
      for (const name of ["pointerup", "pointercancel"]) this.stage.addEventListener(name, () => { this.held = false; });
    }

    playing(on) {
      clearInterval(this.timer);
      this.timer = null;
      const count = this.axes[this.last].words.length;
      const next = () => this.move(this.last, (this.at[this.last] + 1) % count);
      if (on) this.timer = setInterval(next, this.data.wiped ? CLOCK / 4 : CLOCK);
      this.play.textContent = on ? "❚❚ pause" : "▶ play";
    }

    // ---- showing

    show() {
      const share = this.data.wiped ? this.at[this.last] / (this.axes[this.last].words.length - 1) : 0;
      this.canvases.forEach((canvas, i) => {
        const [below, above] = this.shown[i];
        this.draw(canvas, below);
        if (above === undefined) return;
        this.draw(canvas, above, this.at, 1 - share);
        const pen = canvas.getContext("2d");
        pen.fillStyle = INK;
        if (share > 0 && share < 1) pen.fillRect(Math.round((1 - share) * canvas.width), 0, 1, canvas.height);
      });
      this.small?.forEach(({button, canvas}, i) => {
        this.draw(canvas, 0, [...this.at.slice(0, -1), i]);
        button.setAttribute("aria-pressed", i === this.at[this.last]);
      });
      this.controls.forEach(({input, said, ordered}, k) => {
        input.value = this.at[k];
        said.textContent = ordered ? this.axes[k].words[this.at[k]] : "";
      });
      this.caption.textContent = this.data.captions[this.state(this.data.axes.length)];
      this.stage.setAttribute("aria-label", `${this.data.title}: ${this.caption.textContent}`);
    }
  }

  for (const place of document.querySelectorAll(".film")) {
    const data = window.FILMS?.[place.dataset.film];
    if (data) new Film(place, data);
  }
})();
