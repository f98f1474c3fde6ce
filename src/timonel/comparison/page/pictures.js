// Pictures: stills are images, videos are canvases that one clock keeps in step, stories are canvases over a sprite.

const images = new Map();
/** The decoded picture, loaded once however many places show it. */
function load(index) {
  if (!images.has(index)) {
    const image = new Image();
    image.src = data.pictures[index];
    images.set(index, image.decode().then(() => image));
  }
  return images.get(index);
}

/** Draws picture `index`; of a sprite, the `at`-th of `count` pictures side by side. */
async function paint(canvas, index, at = 0, count = 1) {
  const wanted = `${index}/${at}`;
  if (canvas.dataset.shows === wanted) return;
  canvas.dataset.shows = wanted;
  const image = await load(index), width = image.naturalWidth / count, height = image.naturalHeight;
  if (canvas.dataset.shows !== wanted) return; // another one was asked for meanwhile
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  crisp(canvas);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  context.drawImage(image, -at * width, 0);
}

const FEW = 128; // pixels of a picture that is shown as squares where it is enlarged; others are smooth
const crisp = (picture) => {
  const width = picture.naturalWidth ?? picture.width;
  picture.classList.toggle("pixel", width <= FEW && width < picture.clientWidth * devicePixelRatio);
};

/** The picture of a cell or reference: an image, or a canvas in step with all other videos. */
function picture(item, alt) {
  if (!item.frames) {
    const src = data.pictures[item.picture];
    const full = src.startsWith("data:image/webp") ? item.full : null; // a png is the picture itself
    const onload = (event) => crisp(event.target);
    return h("img", { src, alt, "data-full": full, decoding: "async", draggable: "false", onload });
  }
  const named = alt ? { role: "img", "aria-label": alt } : { "aria-hidden": "true" };
  const canvas = h("canvas", { class: "film", ...named });
  canvas.film = item;
  onscreen.observe(canvas);
  return canvas;
}
/** Shows the full pictures inside `box`, where the files beside the page are still there. */
function sharpen(box) {
  for (const image of box.querySelectorAll("img[data-full]")) {
    const full = new Image();
    full.src = image.dataset.full;
    full.decode().then(() => { image.src = full.src; }, () => {}); // moved alone, the page keeps the small one
    delete image.dataset.full;
  }
}
/** A canvas that covers a picture with one step of its run, until `step` is its last. */
function storyOf(item) {
  const canvas = h("canvas", { class: "story", hidden: "" });
  canvas.reach = (fraction) => canvas.step(Math.floor(fraction * item.story.count));
  canvas.step = (step) => {
    canvas.hidden = step >= item.story.count;
    if (!canvas.hidden) paint(canvas, item.story.sprite, step, item.story.count);
  };
  return canvas;
}

for (const item of data.references) item.fps ??= data.cells.find((cell) => cell.fps)?.fps;
/** One clock for every video on the page, in seconds. Videos out of sight wait. */
const clock = {
  seconds: 0, playing: false, last: 0,
  film: [...data.cells, ...data.references].filter((item) => item.frames) // the longest
    .sort((one, other) => other.frames.length / other.fps - one.frames.length / one.fps)[0] ?? null,
  show() {
    if (!this.film) return;
    const frameOf = ({ frames, fps }) => Math.floor(this.seconds * fps + 1e-6) % frames.length;
    for (const canvas of document.querySelectorAll("canvas.film")) {
      canvas.dataset.frame = frameOf(canvas.film);
      if (canvas.seen || !canvas.dataset.shows) paint(canvas, canvas.film.frames[canvas.dataset.frame]);
    }
    $("clock").value = frameOf(this.film);
    tell($("clock"), t("frame", { n: frameOf(this.film) + 1, count: this.film.frames.length }));
    $("play").textContent = t(this.playing ? "pause" : "play");
  },
  tick(now) {
    if (!clock.playing) return;
    const passed = Math.max(0, now - clock.last) / 1000; // a frame's time may lie before the press on play
    clock.seconds = (clock.seconds + passed) % (clock.film.frames.length / clock.film.fps);
    clock.last = now;
    clock.show();
    requestAnimationFrame(clock.tick);
  },
  play(on) {
    this.playing = on;
    this.last = performance.now();
    this.show();
    if (on) requestAnimationFrame(this.tick);
  },
};
const onscreen = new IntersectionObserver((entries) => {
  for (const entry of entries) entry.target.seen = entry.isIntersecting;
  clock.show();
}, { rootMargin: "80px" });

function startClock() {
  $("clockbar").hidden = !clock.film;
  if (!clock.film) return;
  $("clock").max = clock.film.frames.length - 1;
  $("play").onclick = () => clock.play(!clock.playing);
  $("clock").oninput = () => {
    clock.seconds = $("clock").value / clock.film.fps;
    clock.play(false);
  };
  clock.play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}
