// Audio as it goes over the wire: Opus where the browser has it (WebCodecs), samples of 16 bits otherwise.

import { OggReader, OggWriter } from "./ogg.js";
import { resample } from "./resample.js";

const BITRATE = 32000;

/** Whether this browser can write and read Opus by itself. */
export async function opusIsHere(sampleRate) {
  if (!("AudioEncoder" in window && "AudioDecoder" in window)) return false;
  try {
    const [encoder, decoder] = await Promise.all([
      AudioEncoder.isConfigSupported(encoding(sampleRate)),
      AudioDecoder.isConfigSupported(decoding(sampleRate)),
    ]);
    return encoder.supported && decoder.supported;
  } catch {
    return false;
  }
}

const encoding = (sampleRate) => ({ codec: "opus", sampleRate, numberOfChannels: 1, bitrate: BITRATE });
const decoding = (sampleRate) => ({ codec: "opus", sampleRate, numberOfChannels: 1 });

/** Opus in Ogg. `send` gets bytes for the server, `play` float samples at `sampleRate`, `fail` an error. */
export class OpusCodec {
  static format = "opus";
  #time = 0;

  constructor(sampleRate, send, play, fail) {
    this.sampleRate = sampleRate;
    this.writer = new OggWriter(sampleRate);
    this.reader = new OggReader();
    send(this.writer.headers());
    this.encoder = new AudioEncoder({
      output: (chunk) => {
        const data = new Uint8Array(chunk.byteLength);
        chunk.copyTo(data);
        send(this.writer.packet(data, chunk.duration));
      },
      error: fail,
    });
    this.encoder.configure(encoding(sampleRate));
    this.decoder = new AudioDecoder({
      output: (audio) => {
        const samples = new Float32Array(audio.numberOfFrames);
        audio.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
        const rate = audio.sampleRate;
        audio.close();
        play(resample(samples, rate, sampleRate));
      },
      error: fail,
    });
    this.decoder.configure(decoding(sampleRate));
    this.played = 0;
  }

  encode(samples) {
    const audio = new AudioData({
      format: "f32",
      sampleRate: this.sampleRate,
      numberOfFrames: samples.length,
      numberOfChannels: 1,
      timestamp: this.#time,
      data: samples,
    });
    this.#time += (samples.length / this.sampleRate) * 1e6;
    this.encoder.encode(audio);
    audio.close();
  }

  decode(bytes) {
    for (const data of this.reader.read(bytes)) {
      this.decoder.decode(new EncodedAudioChunk({ type: "key", timestamp: this.played, data }));
      this.played += 20000;
    }
  }

  close() {
    for (const codec of [this.encoder, this.decoder]) if (codec.state !== "closed") codec.close();
  }
}

/** Samples of 16 bits, little end first. */
export class PcmCodec {
  static format = "pcm";

  constructor(sampleRate, send, play) {
    this.send = send;
    this.play = play;
  }

  encode(samples) {
    this.send(new Uint8Array(toInt16(samples).buffer));
  }

  decode(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const samples = new Float32Array(bytes.byteLength / 2);
    for (let i = 0; i < samples.length; i++) samples[i] = view.getInt16(2 * i, true) / 32768;
    this.play(samples);
  }

  close() {}
}

/** Float samples as integers. */
export function toInt16(samples) {
  const integers = new Int16Array(samples.length);
  for (let i = 0; i < samples.length; i++) {
    integers[i] = Math.round(Math.max(-1, Math.min(1, samples[i])) * 32767);
  }
  return integers;
}
