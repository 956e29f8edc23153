// Opus packets in Ogg pages, in both directions (RFC 3533, RFC 7845).

const CRC = new Uint32Array(256);
for (let i = 0; i < 256; i++) {
  let value = i << 24;
  for (let bit = 0; bit < 8; bit++) value = value & 0x80000000 ? (value << 1) ^ 0x04c11db7 : value << 1;
  CRC[i] = value >>> 0;
}

function checksum(bytes) {
  let value = 0;
  for (const byte of bytes) value = ((value << 8) ^ CRC[((value >>> 24) ^ byte) & 0xff]) >>> 0;
  return value;
}

/** Puts Opus packets into Ogg pages, one page for each packet. */
export class OggWriter {
  #serial = (Math.random() * 2 ** 32) >>> 0;
  #sequence = 0;
  #granule = 0n;

  constructor(sampleRate) {
    this.sampleRate = sampleRate;
  }

  /** The two pages that come before all others. */
  headers() {
    const head = new Uint8Array(19);
    head.set(new TextEncoder().encode("OpusHead"));
    head[8] = 1; // version
    head[9] = 1; // channels
    new DataView(head.buffer).setUint32(12, this.sampleRate, true);
    const vendor = new TextEncoder().encode("ttt-moshi");
    const tags = new Uint8Array(8 + 4 + vendor.length + 4);
    tags.set(new TextEncoder().encode("OpusTags"));
    new DataView(tags.buffer).setUint32(8, vendor.length, true);
    tags.set(vendor, 12);
    return join([this.#page(head, 2), this.#page(tags, 0)]);
  }

  /** A page with one packet that lasts `microseconds`. */
  packet(data, microseconds) {
    this.#granule += BigInt(Math.round((microseconds * 48000) / 1e6));
    return this.#page(data, 0);
  }

  #page(data, flags) {
    const lacing = Math.floor(data.length / 255) + 1;
    const page = new Uint8Array(27 + lacing + data.length);
    const view = new DataView(page.buffer);
    page.set(new TextEncoder().encode("OggS"));
    page[5] = flags;
    view.setBigUint64(6, this.#granule, true);
    view.setUint32(14, this.#serial, true);
    view.setUint32(18, this.#sequence++, true);
    page[26] = lacing;
    page.fill(255, 27, 27 + lacing - 1);
    page[27 + lacing - 1] = data.length % 255;
    page.set(data, 27 + lacing);
    view.setUint32(22, checksum(page), true);
    return page;
  }
}

/** Takes Opus packets out of a stream of Ogg pages, however it is cut. */
export class OggReader {
  #rest = new Uint8Array(0);
  #partial = [];

  /** The packets that are complete with `bytes`, without the two headers. */
  read(bytes) {
    const data = join([this.#rest, bytes]);
    const packets = [];
    let at = 0;
    while (data.length - at >= 27) {
      const segments = data[at + 26];
      const body = at + 27 + segments;
      if (data.length < body) break;
      const sizes = data.subarray(at + 27, body);
      const end = body + sizes.reduce((sum, size) => sum + size, 0);
      if (data.length < end) break;
      let place = body;
      for (const size of sizes) {
        this.#partial.push(data.subarray(place, place + size));
        place += size;
        if (size < 255) {
          const packet = join(this.#partial);
          this.#partial = [];
          const name = String.fromCharCode(...packet.subarray(0, 8));
          if (name !== "OpusHead" && name !== "OpusTags") packets.push(packet);
        }
      }
      at = end;
    }
    this.#rest = data.slice(at);
    return packets;
  }
}

/** Byte arrays one after another. */
export function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
