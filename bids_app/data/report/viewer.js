// Drives the slice viewers of a report: NiiVue draws, and the controls of the page say what.
"use strict";
(() => {
  const FLIP = "mri2pet-radiological"; // key of what is kept over reloads
  const MOST = 8; // zoom
  const viewers = new Map(); // element → promise of a viewer

  async function inflate(base64) {
    const bytes = Uint8Array.from(atob(base64.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  let library = null;
  async function loadLibrary() {
    const script = document.createElement("script");
    script.textContent = new TextDecoder().decode(
      await inflate(document.getElementById("niivue").textContent),
    );
    document.head.append(script); // runs it
  }

  function isRadiological() {
    try {
      return localStorage.getItem(FLIP) === "yes";
    } catch {
      return false; // storage may be forbidden
    }
  }

  function keepRadiological(radiological) {
    try {
      localStorage.setItem(FLIP, radiological ? "yes" : "no");
    } catch {
      return; // it then holds for this visit
    }
  }

  function canDraw() {
    const gl = document.createElement("canvas").getContext("webgl2");
    gl?.getExtension("WEBGL_lose_context")?.loseContext();
    return Boolean(gl) && "DecompressionStream" in window;
  }

  function show(number) {
    const words = Math.abs(number) < 1000 ? number.toPrecision(3) : number.toFixed(0);
    return words.replace("-", "−");
  }

  function showPlace(mm) {
    const [x, y, z] = [...mm].map((one) => (Math.round(one * 10) / 10 + 0).toFixed(1));
    return `x ${x}, y ${y}, z ${z} mm`.replaceAll("-", "−");
  }

  class Viewer {
    constructor(root) {
      this.root = root;
      this.canvas = root.querySelector("canvas");
      this.layers = JSON.parse(root.querySelector("script").textContent);
      for (const layer of this.layers) layer.top = layer.high; // which a reader may change
      this.detector = root.querySelector("[name=detector]");
      this.view = root.querySelector("[name=view]");
      this.zoom = root.querySelector("[name=zoom]");
      this.flip = root.querySelector("[name=flip]");
      this.rows = new Map(
        [...root.querySelectorAll("tr[data-layer]")].map((row) => [row.dataset.layer, row]),
      );
    }

    async start() {
      const { canvas } = this;
      const label = canvas.getAttribute("aria-label");
      this.nv = new niivue.Niivue({
        logLevel: "error",
        dragAndDropEnabled: false,
        dragMode: niivue.DRAG_MODE.none,
        multiplanarLayout: niivue.MULTIPLANAR_TYPE.ROW,
        multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
        crosshairColor: [1, 1, 1, 0.7],
        crosshairWidthUnit: "mm",
        crosshairWidth: 0.6,
        crosshairGap: 8,
        fontMinPx: 18,
        multiplanarPadPixels: 6,
        showAllOrientationMarkers: true,
        fontColor: [1, 1, 1, 1],
        isRadiologicalConvention: isRadiological(),
      });
      this.nv.onLocationChange = (told) => this.tell(told);
      await this.nv.attachToCanvas(canvas);
      canvas.setAttribute("aria-label", label);
      for (const layer of this.layers) this.nv.addVolume(await this.read(layer));
      this.listen();
      this.flip.checked = isRadiological();
      this.fill();
      const place = this.root.dataset.place;
      this.go(place ? place.split(" ").map(Number) : [...this.middle()]);
      return this;
    }

    async read(layer) {
      if (layer.colours.startsWith("#")) {
        const [R, G, B] = [1, 3, 5].map((at) => parseInt(layer.colours.slice(at, at + 2), 16));
        this.nv.addColormap(layer.colours, {
          R: [R, R], G: [G, G], B: [B, B], A: [0, 255], I: [0, 255],
        });
      }
      const image = await niivue.NVImage.new(
        await inflate(layer.nifti), `${layer.kind}.nii`, layer.colours, 0, null,
        layer.low, layer.high,
      );
      image.colormapType = layer.kind === "map" ? 2 : 0; // from 0 on, clear below the threshold
      return image;
    }

    listen() {
      const { canvas, root } = this;
      root.addEventListener("input", (event) => this.change(event.target));
      canvas.parentElement.addEventListener("wheel", (event) => this.turn(event), true);
      canvas.parentElement.addEventListener("dblclick", (event) => event.stopPropagation(), true);
      canvas.addEventListener("mousedown", () => canvas.focus({ preventScroll: true }));
      for (const kind of ["keydown", "keyup"]) {
        canvas.parentElement.addEventListener(
          kind,
          (event) => {
            event.stopPropagation(); // NiiVue has other keys
            if (kind === "keydown" && this.press(event.key)) event.preventDefault();
          },
          true,
        );
      }
    }

    isChosen(layer) {
      return !layer.detector || layer.detector === this.detector.value;
    }

    // Write the window of each layer into its row, then draw.
    fill() {
      for (const layer of this.layers.filter((one) => this.isChosen(one))) {
        for (const end of ["low", "high"]) {
          const input = this.rows.get(layer.label).querySelector(`[name=${end}]`);
          if (!input) continue;
          input.step = 10 ** (Math.floor(Math.log10(layer.high)) - 2);
          input.value = Number(layer[end].toPrecision(3));
        }
      }
      this.draw();
    }

    draw() {
      this.layers.forEach((layer, number) => {
        const row = this.rows.get(layer.label);
        const image = this.nv.volumes[number];
        const shown = this.isChosen(layer) && row.querySelector("[name=show]").checked;
        image.opacity = shown ? Number(row.querySelector("[name=opacity]").value) : 0;
        image.cal_min = layer.low;
        image.cal_max = layer.high;
      });
      this.nv.updateGLVolume();
      this.nv.createOnLocationChange();
    }

    change(input) {
      if (input === this.view) this.nv.setSliceType(Number(input.value));
      else if (input === this.zoom) this.centre();
      else if (input === this.flip) flipAll(input.checked);
      else if (input === this.detector) this.fill();
      else {
        this.setWindow(input);
        this.draw();
      }
    }

    setWindow(input) {
      const label = input.closest("tr").dataset.layer;
      const layer = this.layers.find((one) => one.label === label && this.isChosen(one));
      if (!layer || !["low", "high"].includes(input.name) || input.value === "") return;
      const ends = { low: layer.low, high: layer.high, [input.name]: Number(input.value) };
      if (ends.low < ends.high) Object.assign(layer, ends);
    }

    setFlip(radiological) {
      this.flip.checked = radiological;
      this.nv.setRadiologicalConvention(radiological);
    }

    middle() {
      return this.nv.frac2mm([0.5, 0.5, 0.5]).slice(0, 3);
    }

    // Put the crosshair into the middle of slices that are enlarged.
    centre() {
      const zoom = Number(this.zoom.value);
      const mm = this.nv.frac2mm(this.nv.scene.crosshairPos);
      const pan = [...this.middle()].map((one, axis) => (zoom > 1 ? one - zoom * mm[axis] : 0));
      this.nv.setPan2Dxyzmm([...pan, zoom]);
    }

    go(mm) {
      this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
      this.nv.createOnLocationChange();
      this.centre();
    }

    step(axis, by) {
      const voxels = [0, 0, 0];
      voxels[axis] = by;
      this.nv.moveCrosshairInVox(...voxels);
      this.centre();
    }

    press(key) {
      const right = this.flip.checked ? -1 : 1; // as it is on the screen
      const keys = {
        ArrowLeft: () => this.step(0, -right),
        ArrowRight: () => this.step(0, right),
        ArrowDown: () => this.step(1, -1),
        ArrowUp: () => this.step(1, 1),
        PageDown: () => this.step(2, -1),
        PageUp: () => this.step(2, 1),
        "+": () => this.enlarge(1.25),
        "-": () => this.enlarge(0.8),
        0: () => this.enlarge(0),
        r: () => flipAll(!this.flip.checked),
        v: () => this.turnView(),
      };
      keys[key]?.();
      return key in keys;
    }

    enlarge(by) {
      this.zoom.value = Math.min(Math.max(Number(this.zoom.value) * by, 1), MOST);
      this.centre();
    }

    turnView() {
      this.view.selectedIndex = (this.view.selectedIndex + 1) % this.view.length;
      this.change(this.view);
    }

    turn(event) {
      const focused = document.activeElement === this.canvas; // else the page could not be scrolled
      if (focused && !event.ctrlKey) return; // NiiVue moves the slice
      event.stopPropagation();
      if (!focused) return;
      event.preventDefault();
      this.enlarge(event.deltaY < 0 ? 1.25 : 0.8);
    }

    tell(told) {
      const values = this.layers.flatMap((layer, number) => {
        const valued = ["t1w", "pet", "map"].includes(layer.kind) && this.isChosen(layer);
        const value = told.values[number]?.value ?? NaN;
        const least = value > 0.999 * layer.top ? "≥ " : ""; // what was higher was clipped
        return valued ? [`${layer.label} ${least}${show(value)}`] : [];
      });
      this.root.querySelector("output").value = [showPlace(told.mm), ...values].join(" · ");
    }
  }

  async function flipAll(radiological) {
    keepRadiological(radiological);
    for (const viewer of viewers.values()) (await viewer)?.setFlip(radiological);
  }

  function lack(root, error) {
    if (error) console.error(error);
    root.querySelector(".lacking").hidden = false;
    root.querySelector(".panel").hidden = true;
  }

  function begin(root) {
    if (!viewers.has(root)) {
      library ??= loadLibrary();
      const viewer = library.then(() => new Viewer(root).start());
      viewers.set(root, viewer.catch((error) => lack(root, error)));
    }
    return viewers.get(root);
  }

  async function visit(button) {
    const root = document.getElementById(button.dataset.viewer);
    root.scrollIntoView({ block: "nearest" });
    const viewer = await begin(root);
    if (!viewer) return;
    viewer.detector.value = button.dataset.detector;
    viewer.fill();
    viewer.go(button.dataset.place.split(" ").map(Number));
  }

  if (!canDraw()) return; // the note stays
  const near = new IntersectionObserver(
    (entries) => entries.forEach((one) => one.isIntersecting && begin(one.target)),
    { rootMargin: "400px" },
  );
  for (const root of document.querySelectorAll(".viewer")) {
    root.querySelector(".lacking").hidden = true;
    root.querySelector(".panel").hidden = false;
    near.observe(root);
  }
  for (const button of document.querySelectorAll("button[data-viewer]")) {
    button.disabled = false;
    button.addEventListener("click", () => visit(button));
  }
})();
