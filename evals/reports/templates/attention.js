// <regaze-attention about="JSON">: attention over pictures, head by head. regaze.evals.reports.viewer
// writes the element and documents its data. No framework, no network; colours follow the page's.
(() => {
  if (customElements.get("regaze-attention")) return;

  const STYLE = `
    :host { display: block; font-size: .875rem; line-height: 1.4; color: inherit; }
    .sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 8rem), 1fr)); gap: .8rem; }
    figure { margin: 0; min-width: 0; max-width: 26rem; }
    figcaption { margin: 0 0 .3rem; font-weight: 600; overflow-wrap: anywhere; }
    .seen { position: relative; overflow: hidden; border-radius: 6px; background: #0003; touch-action: pan-y; }
    .seen img { display: block; width: 100%; height: auto; }
    .seen canvas { position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: pixelated; }
    .seen.bare canvas { opacity: 0; }
    .tiny { image-rendering: pixelated; }
    .looks { display: flex; flex-wrap: wrap; gap: .2rem; margin: .4rem 0; }
    button { font: inherit; color: inherit; background: none; cursor: pointer; padding: .05rem .45rem; border-radius: 5px;
      border: 1px solid color-mix(in srgb, currentColor 30%, transparent); overflow-wrap: anywhere; text-align: left; }
    button[aria-pressed="true"] { background: color-mix(in srgb, currentColor 16%, transparent); border-color: currentColor; }
    button:focus-visible, .heads:focus-visible { outline: 2px solid #e8590c; outline-offset: 2px; }
    .heads { position: relative; margin: .4rem 0 0; border-radius: 4px; cursor: crosshair; touch-action: pan-y; }
    .heads canvas { display: block; width: 100%; image-rendering: pixelated; border-radius: 4px; }
    .mark { position: absolute; box-sizing: border-box; border: 2px solid #e8590c; border-radius: 2px;
      box-shadow: 0 0 0 1px #fff; pointer-events: none; }
    .axis { display: flex; justify-content: space-between; font-size: .75rem; opacity: .75; }
    .tools { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin-top: .5rem; }
    .said { margin: .4rem 0 0; min-height: 2.8em; font-variant-numeric: tabular-nums; }
    .hint { margin: .2rem 0 0; font-size: .75rem; opacity: .75; }
  `;
  // Stops of matplotlib's inferno at equal distances.
  const STOPS = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85],
    [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164]];

  const colour = (level) => {
    const at = Math.min(Math.max(level, 0), 1) * (STOPS.length - 1);
    const low = Math.min(Math.floor(at), STOPS.length - 2);
    return STOPS[low].map((from, i) => from + (at - low) * (STOPS[low + 1][i] - from));
  };
  const percent = (share) => {
    const value = 100 * share;
    return `${value >= 9.95 || value === 0 ? value.toFixed(0) : value >= 0.095 ? value.toFixed(1) : value.toPrecision(1)} %`;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const make = (tag, fields = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), fields);
    node.append(...children);
    return node;
  };
  const pixels = (canvas, width, height, paint) => {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    paint((place, [r, g, b], alpha) => image.data.set([r, g, b, 255 * alpha], 4 * place));
    context.putImageData(image, 0, 0);
  };

  class Side {
    constructor(view, about) {
      Object.assign(this, about, { view, look: 0, levels: bytes(about.levels) });
      this.cells = this.rows * this.cols;
      this.n = this.tops[0].length;
      const img = make("img", { src: this.picture, alt: `${this.title}: the picture`, draggable: false });
      img.onload = () => img.classList.toggle("tiny", img.naturalWidth < 128);
      this.heat = make("canvas");
      this.seen = make("div", { className: "seen" }, img, this.heat);
      this.seen.onpointermove = (event) => view.point(this, event);
      this.seen.onpointerleave = () => view.point(null);
      this.buttons = this.looks.map((name, look) =>
        make("button", { type: "button", textContent: name, onclick: () => view.choose(this, look) }));
      this.map = make("canvas");
      this.mark = make("div", { className: "mark" });
      this.heads = make("div", { className: "heads", tabIndex: 0 }, this.map, this.mark);
      this.heads.setAttribute("role", "group");
      this.heads.setAttribute("aria-label",
        `${this.title}: layers and heads. Arrow keys choose a head, Enter keeps it, Escape shows the mean of all.`);
      this.heads.onpointermove = (event) => view.hover(this.at(event));
      this.heads.onpointerleave = () => view.hover(null);
      this.heads.onclick = (event) => view.pin(this.at(event));
      this.heads.onkeydown = (event) => view.key(event);
      const looks = make("div", { className: "looks" }, ...this.buttons);
      looks.setAttribute("role", "group");
      looks.setAttribute("aria-label", `${this.title}: what looks`);
      this.node = make("figure", {}, make("figcaption", { textContent: this.title }), this.seen,
        ...(this.looks.length > 1 ? [looks] : []), this.heads,
        make("div", { className: "axis" }, make("span", { textContent: "head 0 →" }),
          make("span", { textContent: `${view.layers.length} layers ↓` })));
    }

    at(event) {
      const box = this.map.getBoundingClientRect();
      const { heads, starts } = this.view;
      const layer = Math.min(heads.length - 1, Math.max(0, Math.floor(heads.length * (event.clientY - box.top) / box.height)));
      const head = Math.floor(Math.max(...heads) * (event.clientX - box.left) / box.width);
      return starts[layer] + Math.min(Math.max(head, 0), heads[layer] - 1);
    }

    // Attention per patch: a head's, or the mean of all.
    values(index) {
      const from = this.look * this.n * this.cells;
      const tops = this.tops[this.look];
      const found = new Float32Array(this.cells);
      const chosen = index === null ? tops.keys() : [index];
      for (const head of chosen) {
        const scale = tops[head] / 255 / (index === null ? this.n : 1);
        for (let cell = 0; cell < this.cells; cell++)
          found[cell] += scale * this.levels[from + head * this.cells + cell];
      }
      return found;
    }

    share(index) {
      const all = this.shares[this.look];
      return index === null ? all.reduce((sum, one) => sum + one, 0) / this.n : all[index];
    }

    drawHeat(values, top) {
      pixels(this.heat, this.cols, this.rows, (dot) => values.forEach((value, place) => {
        const level = top ? value / top : 0;
        dot(place, colour(0.2 + 0.8 * level), 0.88 * level ** 0.6);
      }));
    }

    drawHeads(top) {
      const { heads, starts } = this.view;
      const wide = Math.max(...heads);
      pixels(this.map, wide, heads.length, (dot) => heads.forEach((count, layer) => {
        for (let head = 0; head < count; head++)
          dot(layer * wide + head, colour(top ? this.shares[this.look][starts[layer] + head] / top : 0), 1);
      }));
      this.map.style.aspectRatio = `${wide} / ${heads.length}`;
      this.map.style.maxHeight = "16rem";
      this.map.style.minHeight = `${Math.min(6, 1.1 * heads.length)}rem`;
    }

    drawMark(index) {
      this.mark.hidden = index === null;
      if (index === null) return;
      const [layer, head] = this.view.place(index);
      const { heads } = this.view;
      const wide = Math.max(...heads);
      Object.assign(this.mark.style, {
        left: `${100 * head / wide}%`, width: `${100 / wide}%`, minWidth: "5px",
        top: `${100 * layer / heads.length}%`, height: `${100 / heads.length}%`, minHeight: "5px",
      });
    }
  }

  class Viewer extends HTMLElement {
    static observedAttributes = ["about"];

    attributeChangedCallback() { if (this.isConnected) this.build(); }
    connectedCallback() { this.build(); }

    build() {
      const about = JSON.parse(this.getAttribute("about"));
      Object.assign(this, { layers: about.layers, heads: about.heads, unit: about.unit });
      this.starts = this.heads.map((_, i) => this.heads.slice(0, i).reduce((a, b) => a + b, 0));
      this.kept = this.hovered = this.pointed = null;
      this.sides = about.sides.map((side) => new Side(this, side));
      this.said = make("p", { className: "said" });
      this.said.setAttribute("role", "status");
      this.mean = make("button", { type: "button", textContent: "Mean of all heads", onclick: () => this.pin(null) });
      const bare = make("button", { type: "button", textContent: "Hide attention", onclick: () => {
        const off = bare.getAttribute("aria-pressed") !== "true";
        bare.setAttribute("aria-pressed", String(off));
        this.sides.forEach((side) => side.seen.classList.toggle("bare", off));
      } });
      bare.setAttribute("aria-pressed", "false");
      const root = this.shadowRoot ?? this.attachShadow({ mode: "open" });
      root.replaceChildren(make("style", { textContent: STYLE }),
        make("div", { className: "sides" }, ...this.sides.map((side) => side.node)),
        make("div", { className: "tools" }, this.mean, bare), this.said,
        make("p", { className: "hint", textContent:
          "Below each picture: a row per layer, a column per head, brighter for a larger share. Point at a head "
          + "or a patch. Click or Enter keeps a head, arrow keys move, Escape goes back to the mean." }));
      this.draw();
    }

    get index() { return this.hovered ?? this.kept; }

    place(index) {
      const layer = this.starts.findLastIndex((start) => start <= index);
      return [layer, index - this.starts[layer]];
    }

    hover(index) { if (index !== this.hovered) { this.hovered = index; this.draw(); } }
    pin(index) { this.kept = index === this.kept ? null : index; this.hovered = null; this.draw(); }

    choose(side, look) {
      for (const one of this.sides)
        if (one === side || one.looks[look] === side.looks[look]) one.look = look;
      this.draw();
    }

    point(side, event) {
      if (side) {
        const box = side.seen.getBoundingClientRect();
        const row = Math.floor(side.rows * (event.clientY - box.top) / box.height);
        const column = Math.floor(side.cols * (event.clientX - box.left) / box.width);
        const inside = row >= 0 && row < side.rows && column >= 0 && column < side.cols;
        this.pointed = inside ? { side, row, column } : null;
      } else this.pointed = null;
      this.say();
    }

    key(event) {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      if (event.key === "Escape") this.kept = this.hovered = null;
      else if (event.key === "Enter" || event.key === " ") this.kept = this.index;
      else if (event.key in moves) {
        const [layer, head] = this.index === null ? [0, 0] : this.place(this.index);
        const [down, right] = this.index === null ? [0, 0] : moves[event.key];
        const next = Math.min(Math.max(layer + down, 0), this.heads.length - 1);
        this.kept = this.starts[next] + Math.min(Math.max(head + right, 0), this.heads[next] - 1);
        this.hovered = null;
      } else return;
      event.preventDefault();
      this.draw();
    }

    draw() {
      const all = this.sides.map((side) => side.values(this.index));
      const top = Math.max(...all.map((values) => Math.max(...values)));
      const most = Math.max(...this.sides.map((side) => Math.max(...side.shares[side.look])));
      this.sides.forEach((side, i) => {
        side.drawHeat(all[i], top);
        side.drawHeads(most);
        side.drawMark(this.index);
        side.buttons.forEach((button, look) => button.setAttribute("aria-pressed", String(look === side.look)));
      });
      this.shown = all;
      this.mean.setAttribute("aria-pressed", String(this.index === null));
      this.say();
    }

    say() {
      const [layer, head] = this.index === null ? [null, null] : this.place(this.index);
      const who = layer === null ? "All heads" : `${this.layers[layer]}, head ${head}`;
      const shares = this.sides.map((side) => `${side.title} ${percent(side.share(this.index))}`).join(", ");
      let text = `${who}: ${shares} ${this.unit}.`;
      if (this.pointed) {
        const { side, row, column } = this.pointed;
        const here = this.sides.map((one, i) => [one, this.shown[i][row * one.cols + column]])
          .filter(([one]) => one.rows === side.rows && one.cols === side.cols)
          .map(([one, value]) => `${one.title} ${percent(value)}`).join(", ");
        text += ` Patch in row ${row + 1}, column ${column + 1}: ${here}.`;
      }
      this.said.textContent = text;
    }
  }

  customElements.define("regaze-attention", Viewer);
})();
