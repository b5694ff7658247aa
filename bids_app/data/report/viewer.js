// Runs inside the frame of nilearn's slice viewer, before that viewer starts: keeps hold of it, so
// that the page around it, the arrow keys and the wheel can move its slices.
"use strict";
let viewer = null;
const makeBrainsprite = brainsprite;
brainsprite = (options) => {
  viewer = makeBrainsprite({ ...options, nanValue: true }); // no value is shown, so none is read
  const slider = document.querySelector("input[type=range]");
  if (slider) slider.value = 100 * viewer.overlay.opacity;
  viewer.canvas.tabIndex = 0;
  viewer.canvas.setAttribute("role", "application");
  viewer.canvas.setAttribute("aria-label", "Slices: arrow keys, Page Up and Page Down move them");
  viewer.canvas.addEventListener("click", () => viewer.canvas.focus());
  viewer.canvas.addEventListener("keydown", moveByKey);
  viewer.canvas.addEventListener("wheel", moveByWheel, { passive: false });
  new ResizeObserver(() => viewer.resize() && viewer.drawAll()).observe(document.body);
  return viewer;
};

function show(slices) {
  if (!viewer) return;
  for (const axis of ["X", "Y", "Z"]) {
    const last = viewer.nbSlice[axis] - 1;
    viewer.numSlice[axis] = Math.min(Math.max(slices[axis], 0), last);
  }
  viewer.init();
  viewer.drawAll();
}

function step(axis, by) {
  show({ ...viewer.numSlice, [axis]: viewer.numSlice[axis] + by });
}

const KEYS = {
  ArrowLeft: ["X", -1], ArrowRight: ["X", 1], ArrowDown: ["Y", -1], ArrowUp: ["Y", 1],
  PageDown: ["Z", -1], PageUp: ["Z", 1],
};

function moveByKey(event) {
  if (!(event.key in KEYS)) return;
  step(...KEYS[event.key]);
  event.preventDefault();
}

function moveByWheel(event) {
  if (document.activeElement !== viewer.canvas) return; // else the page could not be scrolled
  const x = event.clientX - viewer.canvas.getBoundingClientRect().left;
  const { X, Y } = viewer.widthCanvas;
  step(x < X ? "X" : x < X + Y ? "Y" : "Z", event.deltaY < 0 ? 1 : -1);
  event.preventDefault();
}

window.addEventListener("message", (event) => {
  if (event.source === window.parent) show(event.data);
});
