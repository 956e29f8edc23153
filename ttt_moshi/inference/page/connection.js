// The web socket: moshi's messages, and reconnecting to the same conversation.

const READY = 0;
const AUDIO = 1;
const TEXT = 2;
const EVENT = 4;
/** Seconds between tries: five minutes in all. */
const WAIT_SECONDS = [1, 2, 4, 8, ...Array(19).fill(15)];

/** Codes after which trying again makes no sense, and what to tell. */
const REASONS = {
  1000: "The conversation has ended.",
  1008: "The server has let you go",
  4001: "This conversation goes on in another window.",
  4004: "This conversation cannot go on here.",
  4005: "The conversation cannot begin so",
};

export class Connection {
  #socket = null;
  #tries = 0;
  #timer = null;
  #over = false;

  /** `handlers`: opening(), ready(), audio(bytes), text(string), event(object), waiting(seconds), closed(reason). */
  constructor(parameters, session, handlers) {
    this.parameters = parameters;
    this.session = session;
    this.handlers = handlers;
    this.#open();
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  sendAudio(bytes) {
    this.#send(AUDIO, bytes);
  }

  sendEvent(type) {
    this.#send(EVENT, new TextEncoder().encode(JSON.stringify({ type })));
  }

  close() {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
  }

  #send(kind, bytes) {
    if (!this.isOpen) return;
    const message = new Uint8Array(1 + bytes.length);
    message[0] = kind;
    message.set(bytes, 1);
    this.#socket.send(message);
  }

  #open() {
    const parameters = new URLSearchParams({ events: "1", ...this.parameters });
    if (this.session) parameters.set("resume", this.session);
    const address = new URL(`api/chat?${parameters}`, location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.hash = "";
    this.#socket = new WebSocket(address);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onmessage = ({ data }) => this.#receive(new Uint8Array(data));
    this.#socket.onclose = ({ code, reason }) => this.#closed(code, reason);
    this.handlers.opening();
  }

  #receive(message) {
    const content = message.subarray(1);
    if (message[0] === READY) {
      this.#tries = 0;
      this.handlers.ready();
    } else if (message[0] === AUDIO) {
      this.handlers.audio(content);
    } else if (message[0] === TEXT) {
      this.handlers.text(new TextDecoder().decode(content));
    } else if (message[0] === EVENT) {
      const event = JSON.parse(new TextDecoder().decode(content));
      if (event.type === "welcome") this.session = event.session;
      this.handlers.event(event);
    }
  }

  #closed(code, reason) {
    if (this.#over) return;
    if (code in REASONS || this.#tries >= WAIT_SECONDS.length) {
      this.#over = true;
      const words = REASONS[code] ?? "The server cannot be reached.";
      this.handlers.closed([1008, 4005].includes(code) && reason ? `${words}: ${reason}.` : words);
      return;
    }
    const seconds = WAIT_SECONDS[this.#tries++];
    this.handlers.waiting(seconds);
    this.#timer = setTimeout(() => this.#open(), 1000 * seconds);
  }
}
