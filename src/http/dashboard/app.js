// The dashboard. Everything live comes through one plain EventSource, so this is also an example of a client.
//
// Payloads come from strangers: they reach the page as text nodes only, never as markup. Nothing here grows without
// bound: not the list, not what waits to be drawn, not the table of subjects.

const ROWS = 500; // rows in the list, and events that wait for it
const BYTES = 24 * 1024 * 1024; // characters of payload that the list keeps
const SUBJECTS = 1000; // subjects that are counted
const SHOWN_SUBJECTS = 60; // and how many of them stand in the table
const SPAN = 5; // seconds over which a rate is taken
const PREVIEW = 280; // characters of a payload in its row
const PRETTY = 100_000; // characters of a payload that are laid out when a row is opened

const $ = (id) => document.getElementById(id);
const COOKIE = document.querySelector('meta[name="token-cookie"]').content; // `auth.carriers.cookie`; empty: none
const list = $("events");

// What turns the order of the characters around it: an `exe.png` that is a `gnp.exe`.
const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
/** A text for one line, in which nothing that cannot be seen moves what can. */
const oneLine = (text) => text.replace(BIDI, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// ---------------------------------------------------------------------------------------------------------------------
// JSON as it came. Parsing a payload and printing it again would change it (long numbers, repeated keys), so its text
// is cut and indented as it stands.

/** The end of the JSON string that begins at `at`. */
function stringEnd(text, at) {
  for (let i = at + 1; ; i++) {
    i = text.indexOf('"', i);
    if (i < 0) throw new SyntaxError("a string without an end");
    let slashes = 0;
    while (text[i - 1 - slashes] === "\\") slashes++;
    if (slashes % 2 === 0) return i + 1;
  }
}

/** The end of the JSON value that begins at `at`. */
function valueEnd(text, at) {
  let depth = 0;
  for (let i = at; i < text.length; i++) {
    const c = text[i];
    if (c === '"') {
      i = stringEnd(text, i) - 1;
      if (depth === 0) return i + 1;
    } else if (c === "{" || c === "[") depth++;
    else if (c === "}" || c === "]") {
      if (depth === 0) return i;
      if (--depth === 0) return i + 1;
    } else if (depth === 0 && c === ",") return i;
  }
  throw new SyntaxError("a value without an end");
}

const SPACE = /\s/;

/** The members of a JSON object, each value as its own text. */
function members(text) {
  const found = new Map();
  let i = 0;
  const skip = () => { while (i < text.length && SPACE.test(text[i])) i++; };
  const take = (c) => { skip(); if (text[i] !== c) throw new SyntaxError(`no ${c}`); i++; };
  take("{");
  skip();
  while (text[i] === '"') {
    const end = stringEnd(text, i);
    const name = JSON.parse(text.slice(i, end));
    i = end;
    take(":");
    skip();
    const to = valueEnd(text, i);
    found.set(name, text.slice(i, to).trimEnd());
    i = to;
    skip();
    if (text[i] === ",") { i++; skip(); }
  }
  if (text[i] !== "}") throw new SyntaxError("no }");
  return found;
}

/** Lays out the text of a JSON value: indented and coloured, every token as it came. */
function pretty(raw) {
  const out = document.createDocumentFragment();
  const source = raw.length > PRETTY ? raw.slice(0, PRETTY) : raw;
  const stack = [];
  let plain = "";
  const flush = () => { if (plain) out.append(plain); plain = ""; };
  const span = (kind, text) => { flush(); out.append(element("span", kind, text)); };
  const newline = () => { plain += "\n" + "  ".repeat(Math.min(stack.length, 30)); };
  for (let i = 0; i < source.length; ) {
    const c = source[i];
    if (c === '"') {
      let end;
      try { end = stringEnd(source, i); } catch { end = source.length; }
      let after = end;
      while (SPACE.test(source[after] ?? "")) after++;
      span(source[after] === ":" && stack.at(-1) === "{" ? "k" : "s", source.slice(i, end));
      i = end;
    } else if (c === "{" || c === "[") {
      let after = i + 1;
      while (SPACE.test(source[after] ?? "")) after++;
      plain += c;
      if (source[after] === "}" || source[after] === "]") { plain += source[after]; i = after + 1; continue; }
      stack.push(c);
      newline();
      i++;
    } else if (c === "}" || c === "]") {
      stack.pop();
      newline();
      plain += c;
      i++;
    } else if (c === ",") {
      plain += c;
      newline();
      i++;
    } else if (c === ":") {
      plain += ": ";
      i++;
    } else if (SPACE.test(c)) {
      i++;
    } else {
      let end = i + 1;
      while (end < source.length && !/[\s,:[\]{}"]/.test(source[end])) end++;
      span(/[-\d]/.test(c) ? "n" : "l", source.slice(i, end));
      i = end;
    }
  }
  flush();
  if (source !== raw) out.append(more(raw.length - source.length));
  return out;
}

const more = (count) => element("span", "off", `\n… and ${count.toLocaleString("en")} more characters (Copy takes them all)`);

/** Bytes as offsets, hexadecimal digits and what of them is ASCII. */
function hexdump(base64) {
  const bytes = atob(base64.slice(0, 2732)).slice(0, 2048);
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const part = [...bytes.slice(at, at + 16)];
    const hex = part.map((b) => b.charCodeAt(0).toString(16).padStart(2, "0")).join(" ");
    const ascii = part.map((b) => (b >= " " && b <= "~" ? b : "·")).join("");
    lines.push(`${at.toString(16).padStart(4, "0")}  ${hex.padEnd(47)}  ${ascii}`);
  }
  return lines.join("\n");
}

const base64Length = (text) => Math.floor((text.length * 3) / 4) - (text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0);

/** Reads an envelope: `{"subject", "time", "data" | "data_base64", "event"?}`. */
function readEnvelope(text, id) {
  const entry = { kind: "event", id, at: Date.now(), size: text.length, subject: "?", time: null, name: null, form: "json", raw: text };
  try {
    const found = members(text);
    if (!found.has("subject")) return { ...entry, form: "odd" };
    entry.subject = String(JSON.parse(found.get("subject")));
    entry.time = found.has("time") ? String(JSON.parse(found.get("time"))) : null;
    entry.name = found.has("event") ? String(JSON.parse(found.get("event"))) : null;
    if (found.has("data_base64")) {
      entry.form = "bytes";
      entry.raw = JSON.parse(found.get("data_base64"));
    } else {
      entry.raw = found.get("data") ?? "null";
      if (entry.raw.startsWith('"')) {
        entry.form = "text";
        entry.raw = JSON.parse(entry.raw);
      }
    }
  } catch {
    entry.form = "odd";
    entry.raw = text;
  }
  entry.size = entry.raw.length;
  return entry;
}

// ---------------------------------------------------------------------------------------------------------------------
// The list. Events gather in `waiting`; once a frame they are drawn together, unless the list is held still: by the
// button, by an opened row, or because the reader has scrolled.

let waiting = []; // newest last
let waitingSize = 0;
let paused = false;
let frame = 0;
let missed = 0; // events since the list was held
let kept = 0; // characters of payload in the list
let total = 0;
let gaps = 0;

const narrow = matchMedia("(max-width: 800px)");
const scrolled = () => (narrow.matches ? list.getBoundingClientRect().top < -24 : list.scrollTop > 8);
const opened = () => list.querySelector("details[open]") !== null;

function add(entry) {
  waiting.push(entry);
  waitingSize += entry.size ?? 0;
  if (entry.kind === "event") missed++;
  if (waiting.length > 2 * ROWS || waitingSize > 2 * BYTES) {
    // No frames while the tab is hidden, no drawing while the list is held: what could not stay in the list anyway goes.
    let from = waiting.length;
    let size = 0;
    while (from > 0 && waiting.length - from < ROWS && size < BYTES) size += waiting[--from].size ?? 0;
    waiting = waiting.slice(from);
    waitingSize = size;
  }
  frame ||= requestAnimationFrame(draw);
}

function draw() {
  frame = 0;
  const why = paused ? "Paused" : opened() ? "Held while an event is open" : scrolled() ? "Held while you read further down" : "";
  $("held").hidden = why === "";
  if (why) {
    if ($("held-text").textContent !== why) $("held-text").textContent = why;
    $("held-count").textContent = missed > 0 ? `${missed.toLocaleString("en")} new` : "";
    return;
  }
  missed = 0;
  if (waiting.length === 0) return;
  const fresh = document.createDocumentFragment();
  for (const entry of waiting.slice(-ROWS).reverse()) fresh.append(entry.kind === "event" ? eventRow(entry) : lineRow(entry));
  waiting = [];
  waitingSize = 0;
  list.prepend(fresh);
  while (list.childElementCount > ROWS || (kept > BYTES && list.childElementCount > 1)) {
    kept -= entries.get(list.lastElementChild)?.size ?? 0;
    list.lastElementChild.remove();
  }
  $("events-empty").hidden = true;
  $("stream-note").textContent = total > ROWS ? `newest ${ROWS} of ${total.toLocaleString("en")}` : "newest first";
}

const redraw = () => { frame ||= requestAnimationFrame(draw); };

const entries = new WeakMap(); // a row's entry

const two = (n) => String(n).padStart(2, "0");
function clock(value) {
  const t = new Date(value ?? NaN);
  if (Number.isNaN(t.getTime())) return "--:--:--.---";
  return `${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}.${String(t.getMilliseconds()).padStart(3, "0")}`;
}

function preview(entry) {
  if (entry.form === "bytes") return `${base64Length(entry.raw).toLocaleString("en")} bytes`;
  const short = entry.raw.slice(0, PREVIEW).replace(/\s+/g, " ");
  return entry.raw === "" ? "empty" : oneLine(short) + (entry.raw.length > PREVIEW ? "…" : "");
}

function eventRow(entry) {
  const row = element("li");
  const details = element("details");
  const summary = element("summary");
  summary.append(element("time", "", clock(entry.time ?? entry.at)), element("span", "subject", oneLine(entry.subject)));
  const text = element("span", entry.form === "text" && entry.raw === "" ? "preview off" : "preview");
  if (entry.name !== null) text.append(element("span", "tag name", oneLine(entry.name)));
  if (entry.form !== "json") text.append(element("span", "tag", { text: "text", bytes: "bytes", odd: "no envelope" }[entry.form]));
  text.append(preview(entry));
  summary.append(text);
  details.append(summary);
  row.append(details);
  entries.set(row, entry);
  kept += entry.size;
  return row;
}

function lineRow(entry) {
  const row = element("li", `line ${entry.kind}`);
  const text = element("span");
  text.append(element("b", "", entry.title), entry.text);
  row.append(element("time", "", clock(entry.at)), text);
  return row;
}

function body(entry) {
  const box = element("div", "body");
  const meta = element("div", "meta");
  const part = (label, value) => {
    const span = element("span", "", `${label} `);
    span.append(element("code", "", value));
    meta.append(span);
  };
  part("subject", oneLine(entry.subject));
  if (entry.time !== null) part("time", entry.time);
  if (entry.name !== null) part("event", oneLine(entry.name));
  if (entry.id) part("id", entry.id);
  const copy = element("button", "quiet", "Copy");
  copy.type = "button";
  copy.addEventListener("click", () => toClipboard(entry.raw, copy));
  meta.append(copy);
  const pre = element("pre");
  pre.tabIndex = 0;
  if (entry.form === "json") pre.append(pretty(entry.raw));
  else if (entry.form === "bytes") {
    pre.textContent = hexdump(entry.raw);
    if (base64Length(entry.raw) > 2048) pre.append(element("span", "off", `\n… of ${preview(entry)} (Copy takes all, as base64)`));
  } else if (entry.raw === "") pre.append(element("span", "off", "(empty)"));
  else {
    pre.textContent = entry.raw.slice(0, PRETTY);
    if (entry.raw.length > PRETTY) pre.append(more(entry.raw.length - PRETTY));
  }
  box.append(meta, pre);
  return box;
}

async function toClipboard(text, button) {
  let said = "Copied";
  try { await navigator.clipboard.writeText(text); } catch { said = "Not allowed"; }
  button.textContent = said;
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// `toggle` does not bubble, but it can be caught on its way down.
list.addEventListener("toggle", (event) => {
  const details = event.target;
  if (!(details instanceof HTMLDetailsElement)) return;
  if (details.open && details.childElementCount === 1) details.append(body(entries.get(details.parentElement)));
  else if (!details.open) details.querySelector(".body")?.remove();
  redraw();
}, true);

list.addEventListener("keydown", (event) => {
  const summaries = [...list.querySelectorAll("summary")];
  const here = summaries.indexOf(document.activeElement);
  const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: summaries.length - 1 }[event.key];
  if (to === undefined || (here < 0 && document.activeElement !== list) || !summaries[to]) return;
  event.preventDefault();
  summaries[to].focus();
});

list.addEventListener("scroll", redraw, { passive: true });
addEventListener("scroll", redraw, { passive: true });

function pause(on) {
  paused = on;
  $("pause").setAttribute("aria-pressed", String(on));
  $("pause").textContent = on ? "Go on" : "Pause";
  redraw();
}

$("pause").addEventListener("click", () => pause(!paused));
$("release").addEventListener("click", () => {
  for (const open of list.querySelectorAll("details[open]")) open.open = false;
  list.scrollTop = 0;
  if (narrow.matches) list.parentElement.scrollIntoView({ block: "start" });
  pause(false);
});
$("clear").addEventListener("click", () => {
  list.replaceChildren();
  waiting = [];
  waitingSize = kept = missed = total = gaps = 0;
  subjects.clear();
  seconds.fill(0);
  $("events-empty").hidden = false;
  $("stream-note").textContent = "";
  figures();
  redraw();
});

// ---------------------------------------------------------------------------------------------------------------------
// Counting.

const subjects = new Map(); // subject -> { count, now, past: the last SPAN seconds }, least recently seen first
const seconds = new Array(60).fill(0);
let thisSecond = 0;

function count(subject) {
  total++;
  thisSecond++;
  let seen = subjects.get(subject);
  if (seen) subjects.delete(subject);
  else {
    seen = { count: 0, now: 0, past: [] };
    if (subjects.size >= SUBJECTS) subjects.delete(subjects.keys().next().value);
  }
  seen.count++;
  seen.now++;
  subjects.set(subject, seen);
}

const rateOf = (past) => past.reduce((a, b) => a + b, 0) / Math.max(past.length, 1);
const rateText = (rate) => (rate >= 10_000 ? `${(rate / 1000).toFixed(1)}k/s` : rate >= 10 ? `${Math.round(rate)}/s` : rate === 0 ? "0/s" : `${rate.toFixed(1)}/s`);
const countText = (n) => (n >= 10_000_000 ? `${(n / 1_000_000).toFixed(1)}M` : n >= 100_000 ? `${Math.round(n / 1000)}k` : n.toLocaleString("en"));

function tick() {
  seconds.push(thisSecond);
  seconds.shift();
  thisSecond = 0;
  for (const seen of subjects.values()) {
    seen.past.push(seen.now);
    if (seen.past.length > SPAN) seen.past.shift();
    seen.now = 0;
  }
  figures();
}

function figures() {
  const rate = rateOf(seconds.slice(-SPAN));
  $("rate").textContent = rateText(rate);
  $("count").textContent = countText(total);
  $("gaps").textContent = String(gaps);
  $("gaps").classList.toggle("some", gaps > 0);
  const top = Math.max(...seconds, 1);
  $("spark").firstElementChild.setAttribute("points", seconds.map((n, x) => `${x + 0.5},${(15 - (n / top) * 14).toFixed(1)}`).join(" "));

  const rows = [...subjects].map(([subject, seen]) => ({ subject, count: seen.count, rate: rateOf(seen.past) }));
  rows.sort((a, b) => b.rate - a.rate || b.count - a.count || (a.subject < b.subject ? -1 : 1));
  const most = Math.max(rows[0]?.rate ?? 0, 0.1);
  const table = $("rates");
  const shown = rows.slice(0, SHOWN_SUBJECTS);
  while (table.rows.length > shown.length) table.deleteRow(-1);
  shown.forEach((row, at) => {
    const tr = table.rows[at] ?? subjectRow(table);
    const button = tr.cells[0].firstElementChild;
    if (button.value !== row.subject) {
      button.value = row.subject;
      button.textContent = oneLine(row.subject);
      button.title = `Only ${oneLine(row.subject)}`;
    }
    button.style.setProperty("--share", `${Math.round((row.rate / most) * 100)}%`);
    tr.cells[1].textContent = rateText(row.rate);
    tr.cells[2].textContent = countText(row.count);
    tr.classList.toggle("still", row.rate === 0);
  });
  $("rates-empty").hidden = rows.length > 0;
  $("rates-note").textContent = rows.length > shown.length ? `${shown.length} of ${rows.length}${subjects.size >= SUBJECTS ? "+" : ""}` : "";
}

function subjectRow(table) {
  const tr = table.insertRow();
  const button = element("button");
  button.type = "button";
  button.addEventListener("click", () => {
    $("subject").value = button.value;
    connect();
  });
  tr.insertCell().append(button);
  tr.insertCell();
  tr.insertCell();
  return tr;
}

setInterval(tick, 1000);

// ---------------------------------------------------------------------------------------------------------------------
// The token: in a cookie, since an EventSource sends no headers of its own. It never stands in the address.

const readCookie = () => {
  const found = COOKIE && document.cookie.split("; ").find((c) => c.startsWith(`${COOKIE}=`));
  return found ? found.slice(COOKIE.length + 1) : "";
};

function writeCookie(token) {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `${COOKIE}=${token}; Path=/; SameSite=Strict${secure}${token ? "" : "; Max-Age=0"}`;
}

/** Puts the token field into the cookie; says why when that is impossible. */
function applyToken() {
  const token = $("token").value.trim().replace(/^Bearer\s+/i, "");
  if (token && !/^[\w.~+/=-]+$/.test(token)) return "The token has characters that no token has: it must be letters, digits and - . _ ~ + / =";
  if (token && !COOKIE) return "This server takes no token from a cookie (auth.carriers.cookie is off), and a page has no other way to show one.";
  if (token !== readCookie()) writeCookie(token);
  describeToken(token);
  return readCookie() === token ? "" : `The browser did not take the token as a cookie${token.length > 4000 ? ": it is longer than about 4,000 characters" : ""}.`;
}

const plainNote = $("token-text").cloneNode(true);

function describeToken(token) {
  $("forget").hidden = token === "";
  if (token === "") return $("token-text").replaceChildren(...plainNote.cloneNode(true).childNodes);
  let text = "Token kept in a cookie until the browser closes.";
  try {
    // Only to show it: whether it is good is the server's affair.
    const bytes = Uint8Array.from(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
    const claims = JSON.parse(new TextDecoder().decode(bytes));
    const until = new Date(claims.exp * 1000);
    const who = typeof claims.sub === "string" ? ` of ${claims.sub}` : "";
    if (!Number.isNaN(until.getTime())) text = `Token${who}, ${until < Date.now() ? "ended" : "good until"} ${until.toLocaleString()}; kept in a cookie.`;
  } catch { /* not a JWT that can be looked into */ }
  $("token-text").textContent = text;
}

$("forget").addEventListener("click", () => {
  $("token").value = "";
  applyToken();
  if (source || retryTimer) connect();
});

// ---------------------------------------------------------------------------------------------------------------------
// The connection.

let source = null;
let lastId = "";
let attempt = 0; // of this page's own retries, after EventSource gave up
let retryTimer = 0;
let probe = null;
let was = "idle";

const CLOSINGS = {
  busy: "no slot is free; the browser asks again by itself",
  draining: "the server is shutting down; the browser comes back to it, or to another, and resumes",
  ended: "somebody who runs the server has ended this stream",
  expired: "the token has ended; a new one is needed",
  revoked: "the token was withdrawn",
  slow: "this connection took nothing for too long; it is resumed",
  unavailable: "the server is not ready yet; the browser asks again by itself",
};
const GAPS = {
  retention: "what was missed is older than what the bridge or the broker still holds",
  restart: "the bridge was started anew, and this source keeps no log",
  reset: "the broker's log was made anew, purged or cut",
  overflow: "events came faster than they could be taken",
  unreadable: "the broker could not deliver messages, or they could not be read",
  reconnect: "the connection to the broker was down, and this source keeps no log",
  oversized: "a message was larger than max_payload",
  unknown_cursor: "the id to resume from could not be read",
};

function state(name, text) {
  was = name;
  $("state").dataset.state = name;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
  document.title = name === "open" ? "brokercast" : `${text} · brokercast`;
  const on = source !== null || retryTimer !== 0 || probe !== null;
  $("connect").textContent = on ? "Apply" : "Connect";
  $("connect").classList.toggle("primary", !on);
  $("disconnect").hidden = !on;
  $("resume").hidden = on || lastId === "";
}

function refuse(title, detail, probed = false) {
  $("refusal-why").hidden = !probed;
  $("refusal-title").textContent = title;
  $("refusal-detail").textContent = detail;
  $("refusal").hidden = title === "";
}

const line = (kind, title, text) => add({ kind, title, text, at: Date.now() });

function sinceValue() {
  return $("since").value === "?" ? $("since-other").value.trim() : $("since").value;
}

function address(resumeFrom) {
  const query = new URLSearchParams();
  query.set("envelope", "json");
  for (const pattern of $("subject").value.split(/\s+/).filter(Boolean)) query.append("subject", pattern);
  if (resumeFrom) query.set("last_event_id", resumeFrom);
  else if (sinceValue() && sinceValue() !== "now") query.set("since", sinceValue());
  // Relative, as all addresses here: the page may be below a path.
  return `events?${query}`;
}

function stop() {
  source?.close();
  source = null;
  probe?.abort();
  probe = null;
  clearTimeout(retryTimer);
  retryTimer = 0;
}

/** Opens the stream; with an id, behind it. */
function open(resumeFrom) {
  stop();
  const url = address(resumeFrom);
  const stream = new EventSource(url);
  source = stream;
  state("connecting", "connecting");

  stream.onopen = () => {
    if (was === "waiting") line("closing", "Connected again.", "The stream goes on behind the last id.");
    attempt = 0;
    refuse("", "");
    state("open", "live");
  };
  stream.onmessage = (event) => {
    sawId(event.lastEventId);
    const entry = readEnvelope(event.data, event.lastEventId);
    count(entry.subject);
    add(entry);
  };
  stream.addEventListener("brokercast.gap", (event) => {
    sawId(event.lastEventId);
    const gap = readControl(event.data);
    gaps++;
    const where = gap.source === "*" ? "all sources" : String(gap.source);
    const between = gap.from != null && gap.to != null ? `, between ${gap.from} and ${gap.to}` : gap.from != null ? `, after ${gap.from}` : gap.to != null ? `, before ${gap.to}` : "";
    line("gap", "Gap", `Events of ${where} may be missing${between}: ${GAPS[gap.reason] ?? gap.reason}.`);
  });
  stream.addEventListener("brokercast.closing", (event) => {
    sawId(event.lastEventId);
    const { reason } = readControl(event.data);
    line("closing", "Closing", `The server ends the stream: ${CLOSINGS[reason] ?? reason}.`);
    state("waiting", `waiting: ${reason}`);
  });
  stream.onerror = () => {
    if (source !== stream) return;
    if (stream.readyState === EventSource.CLOSED) {
      source = null;
      explain(url);
    } else if (was !== "waiting") {
      line("closing", "Connection lost.", lastId ? "The browser reconnects by itself and resumes behind the last id." : "The browser reconnects by itself.");
      state("waiting", "reconnecting");
    }
  };
}

function readControl(text) {
  try { return JSON.parse(text) ?? {}; } catch { return { reason: text }; }
}

function sawId(id) {
  if (!id || id === lastId) return;
  lastId = id;
  $("last-id").textContent = id.length > 18 ? `${id.slice(0, 8)}…${id.slice(-6)}` : id;
  $("last-id").title = id;
  $("copy-id").hidden = false;
}

/** EventSource gave up and does not say why: asks for the same once more, and reads the answer. */
async function explain(url) {
  const mine = new AbortController();
  probe = mine;
  state("waiting", "asking why");
  let answer = null;
  let problem = {};
  try {
    answer = await fetch(url, { headers: { Accept: "application/problem+json" }, cache: "no-store", signal: mine.signal });
    if (!answer.ok) problem = await answer.json().catch(() => ({}));
  } catch { /* not reachable: tried again below */ }
  if (probe !== mine) return;
  probe = null;
  mine.abort();
  const status = answer?.status ?? 0;
  if (status >= 400 && status < 500 && status !== 408 && status !== 425 && status !== 429) {
    const title = `${status} ${problem.title ?? answer.statusText}`.trim();
    const hint = status === 401 ? "Put a valid token into the field above and connect." : status === 403 && !problem.detail ? "What was asked for is not covered by the token." : "";
    refuse(title, [problem.detail, hint].filter(Boolean).map((t) => (/[.!?]$/.test(t) ? t : `${t}.`)).join(" "), true);
    line("fault", "Refused", `${title}${problem.detail ? `: ${problem.detail}` : ""}`);
    state("refused", `refused: ${status}`);
    return;
  }
  // A proxy's own 502, a full server, a network that is away: waiting may mend it, so try again from the last id.
  const asked = Number(answer?.headers.get("Retry-After")) || 0;
  const wait = status >= 200 && status < 300 ? 1 : Math.max(asked, Math.min(30, 2 ** attempt++)) * (0.75 + Math.random() / 2);
  // HTTP/2 has no words for a status.
  const said = status ? `${status} ${problem.title ?? answer.statusText}`.trim() : "The server does not answer";
  if (!answer?.ok) line("closing", "Not available", `${said}; this page tries again in ${Math.ceil(wait)} s.`);
  retryTimer = setTimeout(() => open(lastId), wait * 1000);
  state("waiting", status ? `waiting: ${status}` : "reconnecting");
}

/** Starts anew with what the form says. */
function connect() {
  stop();
  attempt = 0;
  lastId = "";
  $("last-id").textContent = "none yet";
  $("copy-id").hidden = true;
  refuse("", "");
  remember();
  const trouble = applyToken();
  if (trouble) {
    refuse("Token not used", trouble);
    return state("refused", "not connected");
  }
  open("");
}

$("query").addEventListener("submit", (event) => {
  event.preventDefault();
  connect();
});
$("disconnect").addEventListener("click", () => {
  stop();
  state("idle", "disconnected");
  $("connect").focus();
});
$("resume").addEventListener("click", () => {
  const trouble = applyToken();
  if (trouble) return refuse("Token not used", trouble);
  line("closing", "Resumed", "behind the last id.");
  open(lastId);
});
$("copy-id").addEventListener("click", () => toClipboard(lastId, $("copy-id")));
$("since").addEventListener("change", () => {
  $("since-other-field").hidden = $("since").value !== "?";
  if ($("since").value === "?") $("since-other").focus();
});

// ---------------------------------------------------------------------------------------------------------------------
// The address holds what the form says, but for the token, so that a view can be bookmarked.

function remember() {
  const query = new URLSearchParams();
  for (const pattern of $("subject").value.split(/\s+/).filter(Boolean)) query.append("subject", pattern);
  if (sinceValue() && sinceValue() !== "now") query.set("since", sinceValue());
  const text = query.toString();
  history.replaceState(null, "", text ? `?${text}` : location.pathname);
}

function recall() {
  const query = new URLSearchParams(location.search);
  $("subject").value = query.getAll("subject").join(" ");
  const since = query.get("since") ?? "now";
  const known = [...$("since").options].some((option) => option.value === since && since !== "?");
  $("since").value = known ? since : "?";
  $("since-other").value = known ? "" : since;
  $("since-other-field").hidden = known;
  $("token").value = readCookie();
}

// ---------------------------------------------------------------------------------------------------------------------
// Publishing.

$("publish").addEventListener("submit", async (event) => {
  event.preventDefault();
  const result = $("publish-result");
  const say = (kind, text) => { result.className = kind; result.textContent = text; };
  const token = readCookie();
  // Each token of the subject is escaped on its own, so that a slash in it stays part of it.
  const subject = encodeURIComponent($("publish-subject").value.trim());
  try {
    const answer = await fetch(`publish/${subject}`, { method: "POST", body: $("publish-data").value, headers: token ? { Authorization: `Bearer ${token}` } : {} });
    if (answer.ok) return say("good", `Taken (${answer.status})`);
    const problem = await answer.json().catch(() => ({}));
    say("bad", [`${answer.status} ${problem.title ?? answer.statusText}`.trim(), problem.detail].filter(Boolean).join(": "));
  } catch {
    say("bad", "The server does not answer.");
  }
});

$("here").textContent = (location.protocol === "https:" ? location.origin : location.host) + location.pathname.replace(/\/[^/]*$/, "");
recall();
connect();
