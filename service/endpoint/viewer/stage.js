// The canvas: which part of the scene is seen, and how it is moved by mouse, touch and keys.

const MAX_ZOOM = 16;
const STEP = 1.25;

export class Stage {
  /** onPoint({x, y} in image pixels, or null) follows the pointer. */
  constructor(canvas, onPoint) {
    this.canvas = canvas;
    this.onPoint = onPoint;
    this.scene = null;
    this.label = "";
    this.look = null;
    this.pointers = new Map();
    this.fit();
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("dblclick", () => this.fit());
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.release(event));
    canvas.addEventListener("pointerleave", () => this.onPoint(null));
  }

  show(scene, label, look, keepView) {
    if (!keepView) [this.zoom, this.shiftX, this.shiftY] = [1, 0, 0];
    Object.assign(this, { scene, label, look });
    this.draw();
  }

  fit() {
    [this.zoom, this.shiftX, this.shiftY] = [1, 0, 0]; // shift in image pixels from the image's centre
    this.draw();
  }

  resize() {
    const density = window.devicePixelRatio || 1;
    const { width, height } = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.max(1, Math.round(width * density));
    this.canvas.height = Math.max(1, Math.round(height * density));
    this.draw();
  }

  /** The image's corner and scale in canvas pixels. */
  get placement() {
    const { canvas, scene } = this;
    const scale = this.zoom * Math.min(canvas.width / scene.width, canvas.height / scene.height);
    const x = canvas.width / 2 - (scene.width / 2 + this.shiftX) * scale;
    const y = canvas.height / 2 - (scene.height / 2 + this.shiftY) * scale;
    return { x, y, scale, lineWidth: 1.5 * (window.devicePixelRatio || 1) };
  }

  draw() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.scene) this.scene.draw(context, this.placement, this.label, this.look);
    this.canvas.classList.toggle("zoomed", this.zoom > 1);
  }

  /** Image position under a page position. */
  toImage(clientX, clientY) {
    const frame = this.canvas.getBoundingClientRect();
    const { x, y, scale } = this.placement;
    const density = this.canvas.width / frame.width;
    return { x: ((clientX - frame.left) * density - x) / scale, y: ((clientY - frame.top) * density - y) / scale };
  }

  zoomBy(factor, clientX, clientY) {
    if (!this.scene) return;
    const frame = this.canvas.getBoundingClientRect();
    const [atX, atY] = [clientX ?? frame.left + frame.width / 2, clientY ?? frame.top + frame.height / 2];
    const before = this.toImage(atX, atY);
    this.zoom = Math.min(MAX_ZOOM, Math.max(1, this.zoom * factor));
    const after = this.toImage(atX, atY);
    this.pan(before.x - after.x, before.y - after.y);
  }

  zoomStep(direction) { this.zoomBy(STEP ** direction); }

  /** Move the view by image pixels; the image's middle stays reachable. */
  pan(byX, byY) {
    if (!this.scene) return;
    const reach = (1 - 1 / this.zoom) / 2;
    const within = (value, size) => Math.min(size * reach, Math.max(-size * reach, value));
    this.shiftX = within(this.shiftX + byX, this.scene.width);
    this.shiftY = within(this.shiftY + byY, this.scene.height);
    this.draw();
  }

  /** Move the view by a share of what is seen. */
  panStep(right, down) {
    if (this.scene) this.pan((right * this.scene.width) / (8 * this.zoom), (down * this.scene.height) / (8 * this.zoom));
  }

  wheel(event) {
    if (!this.scene) return;
    event.preventDefault();
    this.zoomBy(STEP ** (-Math.sign(event.deltaY)), event.clientX, event.clientY);
  }

  press(event) {
    if (!this.scene) return;
    this.pointers.set(event.pointerId, event);
    this.canvas.setPointerCapture(event.pointerId);
  }

  move(event) {
    if (!this.scene) return;
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      this.onPoint(this.toImage(event.clientX, event.clientY));
      return;
    }
    const other = [...this.pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    if (other) {
      const apart = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY);
      const middle = [(event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2];
      this.zoomBy(apart(event) / Math.max(1, apart(before)), ...middle);
    } else {
      const from = this.toImage(before.clientX, before.clientY);
      const to = this.toImage(event.clientX, event.clientY);
      this.pan(from.x - to.x, from.y - to.y);
    }
    this.pointers.set(event.pointerId, event);
  }

  release(event) { this.pointers.delete(event.pointerId); }
}
