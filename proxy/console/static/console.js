// The console's one module. It keeps pages current, shows confirmations as dialogs, and copies. A page without it
// still shows and acts. Elements ask by attributes, so no template has a script of its own:
//
//   data-live="topics"   an element with an id that is read again when one of these topics of /v1/stream changes;
//                        data-every="5" reads it each 5 s too; data-from is the page that has it, if it is another
//   data-modal           a link to a confirmation, which opens as a dialog; data-close closes it
//   data-dialog="id"     a button that opens the <dialog> of that id
//   data-copy="text"     a button that copies the text
//   data-hotkey="/"      the field that "/" focuses
//   data-rows="id"       a field that hides the rows of that table that lack what is typed
//   data-ago, data-since a <time> that is kept current
//   data-theme-choice    a button that stores the colours

export const $ = (selector, from = document) => from.querySelector(selector);
export const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const write = (element, text) => { if (element && element.textContent !== text) element.textContent = text; };

// --- Times. The hub's clock counts: `skew` is its distance from this machine's.

const skew = Number(document.body.dataset.now) - Date.now() / 1000;
const units = [["days", 86400], ["h", 3600], ["min", 60], ["s", 1]];

export function lasting(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [name, length] = units.find(([, length]) => whole >= 2 * length) ?? units.at(-1);
  return `${Math.floor(whole / length)} ${name}`;
}

function tick() {
  const now = Date.now() / 1000 + skew;
  for (const time of all("time")) {
    const past = now - Date.parse(time.dateTime) / 1000;
    if (!time.title.endsWith("here")) time.title += ` · ${new Date(time.dateTime).toLocaleString()} here`;
    if ("since" in time.dataset) write(time, lasting(past));
    if ("ago" in time.dataset)
      write(time, Math.abs(past) < 2 ? "now" : past > 0 ? `${lasting(past)} ago` : `in ${lasting(-past)}`);
  }
}

// --- Parts of the page that are read again. The hub renders them; here only what differs is exchanged, so focus,
// selection and an animation survive. `source` is an element's markup as the hub sent it, without this module's edits.

const source = new WeakMap();
const markup = (element) => source.get(element) ?? element.outerHTML;

function renew(here, there, fresh = false) {
  const sent = there.outerHTML;
  if (!fresh && markup(here) === sent) return here;
  source.set(there, sent);
  const [old, now] = [[...here.children], [...there.children]];
  if (here.matches("[data-live]") && now.length && now.every((child) => child.id)) {
    const kept = new Map(old.map((child) => [child.id, child]));
    // First what is gone, so that no other row moves: an element that moves loses the focus.
    const ids = new Set(now.map((child) => child.id));
    old.filter((child) => !ids.has(child.id)).forEach((child) => child.remove());
    now.forEach((child, index) => {
      const before = kept.get(child.id);
      const row = before ? renew(before, child) : child;
      if (!before) child.classList.add("came");
      if (here.children[index] !== row) here.insertBefore(row, here.children[index] ?? null);
    });
    here.dataset.every = there.dataset.every ?? "";
  } else if (here.id && old.length && old.length === now.length && here.tagName === "TR") {
    old.forEach((cell, index) => renew(cell, now[index]));
    here.className = there.className;
  } else {
    here.replaceWith(there);
    return there;
  }
  source.set(here, sent);
  return here;
}

const topicsOf = (part) => part.dataset.live.split(" ");
const everything = () => all("[data-live]").flatMap(topicsOf);
const pace = 1000 * ($("main")?.dataset.pace ?? 1);
let wanted = new Set(), readAt = Date.now(), due;

// Reads the page again for the parts of these topics: at once, and then at the pace of the page, so that a busy hub
// renders no page more often than a person can read it. A hidden page waits until it is shown.
export function read(topics) {
  topics.forEach((topic) => wanted.add(topic));
  if (due || document.hidden || !everything().some((topic) => wanted.has(topic))) return;
  due = setTimeout(async () => {
    try { await readNow(); } catch { /* The hub does not answer: the stream reads again when it is back. */ }
    readAt = Date.now();
    due = undefined;
    if (wanted.size) read([]);
  }, Math.max(0, readAt + pace - Date.now()));
}

async function readNow() {
  const parts = all("[data-live]").filter((part) => topicsOf(part).some((topic) => wanted.has(topic)));
  wanted = new Set();
  for (const from of new Set(parts.map((part) => part.dataset.from ?? location.href))) {
    const answer = await fetch(from, { redirect: "manual" });
    // The session has ended, or its role changed.
    if (answer.type === "opaqueredirect" || answer.status === 403) return location.reload();
    if (!answer.ok) continue;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    // Another version of the hub has other assets.
    if (page.scripts[0] && page.scripts[0].src !== document.scripts[0].src && !$("dialog[open]")) return location.reload();
    for (const part of parts.filter((part) => (part.dataset.from ?? location.href) === from)) {
      const there = page.getElementById(part.id);
      if (there) renew(part, document.adoptNode(there));
    }
  }
  tick();
  narrow();
}

// --- The stream of what changed. One for each visible page: browsers open six connections to an origin.

let stream, lost = 0;

function state(name, text) {
  const live = $("#live");
  if (!live || live.dataset.state === name) return;
  live.dataset.state = name;
  write($(".livetext"), text);
  const banner = $("#offline");
  banner.hidden = name !== "lost";
  write(banner, name === "lost" ? "The hub does not answer. This page shows what it was, and goes on by itself when the hub is back." : "");
}

function listen() {
  stream?.close();
  stream = undefined;
  if (document.hidden || !document.body.dataset.stream) return;
  stream = new EventSource(document.body.dataset.stream);
  stream.onopen = () => {
    // A request that came or ended between the page and its stream is no change of the stream.
    read(lost ? everything() : ["requests"]);
    lost = 0;
    state("on", "Live");
  };
  stream.onerror = async () => {
    lost += 1;
    if (stream.readyState !== EventSource.CLOSED && lost < 2) return state("off", "Reconnecting");
    stream.close();
    // An EventSource hides the status: a session that ended is asked for by a page, which leads to the sign-in.
    try {
      const answer = await fetch(location.href, { method: "HEAD", redirect: "manual" });
      if (answer.type === "opaqueredirect" || answer.status === 403) return location.reload();
      if (answer.ok) state("off", "Not live");
    } catch { state("lost", "Hub unreachable"); }
    setTimeout(listen, Math.min(500 * 2 ** lost, 10_000) * (0.7 + 0.6 * Math.random()));
  };
  stream.addEventListener("changed", (event) => read(JSON.parse(event.data).topics));
  stream.addEventListener("end", (event) => { if (JSON.parse(event.data).code !== "draining") location.reload(); });
  if (events) for (const name of ["start", "events", "position", "gap"]) stream.addEventListener(name, follow);
  stream.addEventListener("gap", listen);
}

// --- Dialogs, keys, copying, the filter of rows, the colours.

async function ask(link) {
  const modal = $("#modal");
  try {
    const answer = await fetch(link.href, { redirect: "manual" });
    const form = $("#confirm", new DOMParser().parseFromString(await answer.text(), "text/html"));
    if (!form) { location.assign(link.href); return; }
    modal.replaceChildren(document.adoptNode(form));
    modal.setAttribute("aria-label", $("h2", form).textContent);
    modal.showModal();
    $("input:not([type=hidden])", form)?.focus();
  } catch { location.assign(link.href); }
}

function narrow() {
  for (const field of all("input[data-rows]")) {
    const sought = field.value.trim().toLowerCase();
    const rows = all(`#${CSS.escape(field.dataset.rows)} tbody tr:not(:has(.empty))`);
    for (const row of rows) row.hidden = sought !== "" && !row.textContent.toLowerCase().includes(sought);
    const shown = rows.filter((row) => !row.hidden).length;
    write(document.getElementById(`${field.dataset.rows}-matched`), sought && `${shown} of ${rows.length} match`);
  }
}

function colour(choice) {
  if (choice) document.documentElement.dataset.theme = choice;
  else delete document.documentElement.dataset.theme;
  document.cookie = `hawse-theme=${choice}; path=/; samesite=lax; max-age=${choice ? 31536000 : 0}`;
  for (const button of all("[data-theme-choice]")) button.setAttribute("aria-pressed", String(button.dataset.themeChoice === choice));
}

document.addEventListener("click", async (event) => {
  const on = event.target.closest("[data-modal],[data-close],[data-dialog],[data-copy],[data-theme-choice]");
  if (!on || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const { dialog, copy, themeChoice } = on.dataset;
  if ("modal" in on.dataset) { event.preventDefault(); await ask(on); }
  else if ("close" in on.dataset && on.closest("dialog")) { event.preventDefault(); on.closest("dialog").close(); }
  else if (dialog) $(`#${CSS.escape(dialog)}`).showModal();
  else if (copy !== undefined) {
    await navigator.clipboard.writeText(copy);
    const text = on.textContent;
    on.textContent = "Copied";
    setTimeout(() => { on.textContent = text; }, 1500);
  } else if (themeChoice !== undefined) colour(themeChoice);
});

const pages = { o: "/", r: "/requests", l: "/calls", a: "/audit", p: "/policies", d: "/decision" };
let went = 0;
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, textarea, select");
  if (event.key === "Escape" && typing) event.target.blur();
  if (typing || event.metaKey || event.ctrlKey || event.altKey || $("dialog[open]")) return;
  if (event.key === "?") $("#help")?.showModal();
  else if (event.key === "/" && $("[data-hotkey='/']")) { event.preventDefault(); $("[data-hotkey='/']").focus(); }
  else if (event.key === "g") went = Date.now();
  else if (Date.now() - went < 1500 && pages[event.key]) location.assign(pages[event.key]);
});
// The hub cuts the streams of a session that ends, which the browser's console would report as an error.
document.addEventListener("submit", (event) => { if (event.target.matches("[action='/signout']")) stream?.close(); });
document.addEventListener("input", (event) => { if (event.target.matches("[data-rows]")) narrow(); });
document.addEventListener("visibilitychange", () => { listen(); if (!document.hidden) read(everything()); });

// --- The sign-in: the code comes in the fragment, which no server sees, and leaves the address at once.

async function offer() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  const form = $("#signin");
  if (!form || !code) return;
  history.replaceState(null, "", location.pathname + location.search);
  form.code.value = code;
  const answer = await fetch("/signin/offer", { method: "POST", body: new URLSearchParams({ code }) });
  const { name, role, fault } = await answer.json();
  const said = $("#signin-as");
  said.hidden = false;
  if (fault) { said.className = "fault"; said.textContent = fault; return; }
  $("#signin-code").hidden = true;
  $("#code-hint").hidden = true;
  [name, role].forEach((text, index) => write(all("strong", said)[index], text));
  $("button", form).focus();
}

// --- The followed trail. The hub sends rows as texts, some 200 at most five times a second; here they fill copies of
// the page's template. A frame of the screen shows what came since the last one, and the table keeps the newest.

const events = $("[data-follow]");
const EVENTS_MAX = 200;
const changes = document.body.dataset.stream;
let coming = [], came = 0, told = 0, unseen = false, hiddenAt = 0;

function filled(cells) {
  const row = $("#event-row").content.firstElementChild.cloneNode(true);
  row.id = `event-${cells.key}`;
  for (const cell of all("[data-cell]", row)) {
    const name = cell.dataset.cell, link = cells[`${name}_href`];
    (cell.firstElementChild ?? cell).textContent = cells[name];
    cell.hidden = !cells[name];
    if (cell.tagName === "A") link ? cell.setAttribute("href", link) : cell.removeAttribute("href");
  }
  Object.assign($("time", row), { dateTime: cells.time, title: `${cells.time} UTC` });
  $(".outcome .badge", row).className = `badge ${cells.tone}`;
  return row;
}

function showEvents() {
  const rows = coming;
  coming = [];
  // The end of a call takes the place of its beginning.
  for (const { key } of rows) document.getElementById(`event-${key}`)?.remove();
  events.prepend(...rows.map(filled));
  for (const row of [...events.rows].slice(EVENTS_MAX)) row.remove();
  $("#events-none")?.remove();
}

function follow({ type, data, lastEventId }) {
  // A new stream goes on from here; an EventSource that reconnects by itself says so in a header.
  const address = new URL(document.body.dataset.stream, location);
  address.searchParams.set("after", lastEventId);
  document.body.dataset.stream = address.pathname + address.search;
  if (type === "gap") unseen = true;
  if (type !== "events") return;
  const { rows } = JSON.parse(data);
  came += rows.length;
  if (!coming.length) requestAnimationFrame(showEvents);
  unseen ||= coming.length + rows.length > EVENTS_MAX;
  coming = [...rows, ...coming].slice(0, EVENTS_MAX);
}

function tellFollowed() {
  const rate = Math.round((came - told) / 2);
  told = came;
  write($("#followed span:last-child"), `Following: ${came.toLocaleString("en")} new${rate > 1 ? `, ${rate} a second` : ""}${unseen ? ", some not shown" : ""}`);
}

function stopFollowing(link) {
  document.body.dataset.stream = changes;
  listen();
  clearInterval(telling);
  history.replaceState(null, "", link.href);
  write($("#followed span:last-child"), `Stopped after ${came.toLocaleString("en")} new`);
  $("#followed").dataset.state = "off";
  link.removeAttribute("data-stop");
  link.href = `${link.href}${link.search ? "&" : "?"}follow=1`;
  link.textContent = "Follow";
}

let telling;
if (events) {
  document.body.dataset.stream = events.dataset.follow;
  telling = setInterval(tellFollowed, 2000);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-stop]");
    if (link) { event.preventDefault(); stopFollowing(link); }
  });
  // After a while in the background the newest events are of interest, and not all that came meanwhile.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) hiddenAt = Date.now();
    else if ($("[data-stop]") && Date.now() - hiddenAt > 30_000) location.reload();
  });
}

if (location.search.includes("notice=")) {
  const address = new URL(location.href);
  address.searchParams.delete("notice");
  history.replaceState(null, "", address);
}
tick();
setInterval(() => {
  tick();
  for (const part of all("[data-every]"))
    if (part.dataset.every && Date.now() - readAt > 1000 * part.dataset.every) read(topicsOf(part));
}, 1000);
listen();
offer();
// Another URL of a code, opened on the page of the sign-in, loads nothing.
addEventListener("hashchange", offer);
