// The page: buttons, meters and words around one conversation.

import { Audio, level, microphoneProblem } from "./audio.js";
import { OpusCodec, PcmCodec, opusIsHere } from "./codecs.js";
import { Connection } from "./connection.js";
import { MemoryPicture } from "./memory.js";
import { Recording, download } from "./record.js";
import { remember, remembered, unremember } from "./remembered.js";

const LAST = "The last conversation";
const PAUSE_SECONDS = 1.5;

const find = (id) => document.getElementById(id);
const settings = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B")); // after #, so that no log has the token
const token = settings.get("token");
const written = new MemoryPicture(find("layers"), find("written"), (age, shares) =>
  shares ? `Written in ${age} of conversation, ${shares} of where it began.` : "Nothing has been written yet.",
);
const wrong = new MemoryPicture(find("losses"), find("wrong"), (age, shares) =>
  shares ? `Wrong about what it hears, ${shares} of a memory that has heard nothing (inner loss).` : "Nothing has been heard yet.",
);

const state = {
  hello: null, // what the server said of itself
  codec: null,
  audio: null,
  connection: null,
  recording: null,
  talking: false,
  muted: false,
  forgetting: false,
  buffered: 0,
  frames: 0, // of Moshi, in this conversation
  words: [], // { text, start, end } in seconds
  saved: null, // called when the server has saved
};

function say(text) {
  find("status").textContent = text;
}

function enable() {
  const going = state.connection !== null;
  find("talk").textContent = going ? "Hang up" : "Start talking";
  find("talk").disabled = state.hello === null;
  find("mute").disabled = !going;
  find("prompting").hidden = !state.hello?.takes_prompts;
  find("greeting-choice").hidden = !state.hello?.speaks;
  find("prompt").disabled = find("greeting").disabled = going;
  const keeps = Boolean(state.hello?.keeps_sessions);
  find("keep").disabled = find("forget").disabled = !(state.talking && keeps);
  find("save-session").disabled = !(keeps && state.connection?.session);
  find("save-audio").disabled = !state.recording?.user.length;
  find("save-text").disabled = !spoken().length;
  for (const button of document.querySelectorAll("#remembered button")) button.disabled = going || state.hello === null;
}

async function greet() {
  const address = `api/hello${token ? `?token=${encodeURIComponent(token)}` : ""}`;
  try {
    const response = await fetch(address);
    if (response.status === 401) {
      say("This server wants a token: open the page as it was given to you, with #token=… at the end.");
      return;
    }
    if (!response.ok) throw new Error(await response.text());
    state.hello = await response.json();
    find("greeting").checked = state.hello.greets;
    const { free, places, queue } = state.hello;
    say(free ? "Ready." : `All ${places} places are taken, and ${queue} wait: you may wait as well.`);
  } catch (error) {
    say(`The server cannot be reached: ${error.message}`);
  }
  enable();
}

async function start(session) {
  if (state.starting) return; // the browser asks for the microphone, and another button was pressed meanwhile
  state.starting = true;
  try {
    await begin(session);
  } finally {
    state.starting = false;
  }
}

async function begin(session) {
  const { sample_rate: rate, frame_size: size } = state.hello;
  say("Asking for the microphone…");
  find("talk").disabled = true;
  try {
    state.audio = await Audio.open(rate, size, hear, (seconds) => (state.buffered = seconds));
  } catch (error) {
    say(microphoneProblem(error));
    enable();
    return;
  }
  const wanted = settings.get("format");
  const Codec = wanted === "pcm" || !(await opusIsHere(rate)) ? PcmCodec : OpusCodec;
  state.recording = new Recording(rate);
  state.words = [];
  find("transcript").replaceChildren();
  written.clear();
  wrong.clear();
  const prompt = state.hello.takes_prompts && !session ? find("prompt").value.trim() : "";
  const greeting = find("greeting").checked ? "1" : "0";
  const parameters = { format: Codec.format, greeting, ...(token ? { token } : {}), ...(prompt ? { prompt } : {}) };
  state.connection = new Connection(parameters, session, {
    opening: () => say("Connecting…"),
    ready: () => {
      state.codec?.close();
      state.codec = new Codec(rate, (bytes) => state.connection?.sendAudio(bytes), play, (error) => stop(error.message));
      state.talking = true;
      say("Moshi listens. Say something.");
      enable();
    },
    audio: (bytes) => state.codec?.decode(bytes),
    text: write,
    event: obey,
    waiting: (seconds) => {
      state.talking = false;
      state.audio?.hush();
      say(`The connection is lost: trying again in ${seconds} s…`);
      enable();
    },
    closed: stop,
  });
  enable();
}

function stop(reason = "Ready.") {
  state.connection?.close();
  state.codec?.close();
  state.audio?.close();
  Object.assign(state, { connection: null, codec: null, audio: null, talking: false });
  find("you").value = find("moshi").value = 0;
  find("delay").textContent = "Delay: –";
  say(reason);
  list();
  enable();
}

function hear(samples) {
  if (!state.talking) return;
  const frame = state.muted ? new Float32Array(samples.length) : samples;
  find("you").value = level(frame);
  state.recording.user.add(frame);
  state.codec.encode(frame);
}

function play(samples) {
  find("moshi").value = level(samples);
  state.recording.moshi.add(samples);
  state.frames += samples.length / state.hello.frame_size;
  state.audio?.play(samples);
}

function seconds() {
  return (state.frames * state.hello.frame_size) / state.hello.sample_rate;
}

/** Words that have letters: a space alone begins a word, of which the letters may never come. */
function spoken() {
  return state.words.filter(({ text }) => text);
}

/** A piece of text: a space begins a word. */
function write(piece) {
  const now = seconds();
  const last = state.words.at(-1);
  if (piece.startsWith(" ") || !last) {
    const pause = !last || now - last.end > PAUSE_SECONDS;
    state.words.push({ text: piece.trim(), start: now, end: now });
    if (pause) newLine(now);
  } else {
    last.text += piece;
    last.end = now;
  }
  const transcript = find("transcript");
  transcript.lastElementChild.lastChild.data += piece;
  transcript.scrollTop = transcript.scrollHeight;
  enable();
}

function newLine(at) {
  const line = document.createElement("p");
  const time = document.createElement("time");
  const minutes = Math.floor(at / 60);
  time.textContent = `${minutes}:${String(Math.floor(at % 60)).padStart(2, "0")}`;
  line.append(time, document.createTextNode(""));
  find("transcript").append(line);
}

/** A JSON message of the server. */
function obey(event) {
  if (event.type === "queue") {
    say(event.place === 1 ? "You are next: waiting for a place…" : `Waiting for a place: number ${event.place}…`);
  } else if (event.type === "welcome") {
    state.frames = event.frames;
    if (event.session) keep(event.session);
    if (state.forgetting) say("Forgotten. Moshi does not know you.");
    state.forgetting = false;
    list();
  } else if (event.type === "lag") {
    const total = event.seconds + state.buffered;
    find("delay").textContent = `Delay: ${inWords(total)} (${inWords(event.seconds)} in the server)`;
    find("late").hidden = event.dropped === 0;
    find("late").textContent = `${(event.dropped * 0.08).toFixed(1)} s came too late and were not heard.`;
  } else if (event.type === "memory") {
    written.add(seconds(), event.written);
    wrong.add(seconds(), lossShares(event));
  } else if (event.type === "saved") {
    state.saved?.();
  } else if (event.type === "error") {
    say(event.text);
  }
}

/** A time of so many seconds. */
function inWords(seconds) {
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`;
}

/** By layer, the inner loss of the last seconds as a share of that of a memory that has heard nothing. */
function lossShares({ loss, untaught }) {
  const heard = Object.keys(loss).filter((layer) => loss[layer] !== null && untaught[layer] > 0);
  return Object.fromEntries(heard.map((layer) => [layer, loss[layer] / untaught[layer]]));
}

/** Keeps the id of this conversation: under its name, or as the last one. */
function keep(session) {
  const known = remembered().find((one) => one.session === session);
  if (!known) for (const one of remembered()) if (one.name === LAST) unremember(one.session);
  remember(known?.name ?? LAST, session);
}

function list() {
  const items = remembered().map(({ name, session, saved }) => {
    const item = document.createElement("li");
    const text = document.createElement("span");
    text.textContent = `${name} (${new Date(saved).toLocaleString()})`;
    const go = document.createElement("button");
    go.textContent = "Go on";
    go.setAttribute("aria-label", `Go on with ${name}`);
    go.onclick = () => start(session);
    const off = document.createElement("button");
    off.textContent = "Remove";
    off.setAttribute("aria-label", `Remove ${name} from this list`);
    off.onclick = () => {
      unremember(session);
      list();
      enable();
    };
    item.append(text, go, off);
    return item;
  });
  find("remembered").replaceChildren(...items);
  enable();
}

find("talk").onclick = () => (state.connection === null ? start(null) : stop());
find("mute").onclick = () => {
  state.muted = !state.muted;
  find("mute").setAttribute("aria-pressed", String(state.muted));
};
find("remember").onsubmit = (submit) => {
  submit.preventDefault();
  const name = find("name").value.trim();
  if (!name || !state.talking) return;
  remember(name, state.connection.session);
  state.connection.sendEvent("save");
  find("name").value = "";
  list();
};
find("forget").onclick = () => {
  unremember(state.connection.session);
  state.connection.sendEvent("forget");
  state.words = [];
  state.recording = new Recording(state.hello.sample_rate);
  find("transcript").replaceChildren();
  written.clear();
  wrong.clear();
  state.audio?.hush();
  state.forgetting = true;
  say("Forgetting…");
  list();
};
find("save-audio").onclick = () => download(state.recording.wav(), "conversation.wav");
find("save-text").onclick = () => {
  const lines = spoken().map(({ text, start }) => `${start.toFixed(2)}\t${text}`);
  download(new Blob([`${lines.join("\n")}\n`], { type: "text/plain" }), "transcript.txt");
};
find("save-session").onclick = async () => {
  const { session } = state.connection;
  state.connection.sendEvent("save");
  await new Promise((done) => (state.saved = done));
  const address = `api/sessions/${session}${token ? `?token=${encodeURIComponent(token)}` : ""}`;
  const response = await fetch(address);
  if (response.ok) download(await response.blob(), `${session}.session`);
  else say(await response.text());
};

list();
greet();
