// The camera: its preview, and the frames of the last seconds as JPEG images.
// Only the preview is mirrored (by CSS); frames are taken from the video as the camera gives it.

const FRAME_MS = 100;
const KEPT_MS = 8000;

function makeCamera(video, shortSide, onstop) {
  const canvas = document.createElement("canvas");
  let stream = null;
  let timer = null;
  let ring = []; // {time, blob}, oldest first

  function grab() {
    if (!video.videoWidth) return;
    const scale = Math.min(1, shortSide / Math.min(video.videoWidth, video.videoHeight));
    canvas.width = Math.round(video.videoWidth * scale);
    canvas.height = Math.round(video.videoHeight * scale);
    canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
    const time = performance.now();
    canvas.toBlob((blob) => {
      if (!blob || !stream) return;
      ring.push({ time, blob });
      while (ring[0].time < time - KEPT_MS) ring.shift();
    }, "image/jpeg", 0.9);
  }

  function stop() {
    if (!stream) return;
    stream.getTracks().forEach((track) => track.stop());
    clearInterval(timer);
    stream = null;
    video.srcObject = null;
    ring = [];
    onstop();
  }

  async function start() {
    if (stream) return;
    if (!navigator.mediaDevices) {
      throw new Error("the browser allows the camera on this computer (localhost) and over https only");
    }
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        audio: false,
        video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } },
      });
    } catch (error) {
      const reasons = {
        NotAllowedError: "the browser does not allow it: allow it beside the address, and try again",
        NotFoundError: "no camera was found: connect one, and try again",
        NotReadableError: "another program uses it: close that program, and try again",
      };
      throw new Error(`The camera cannot be used: ${reasons[error.name] || error.message}`);
    }
    stream.getVideoTracks()[0].addEventListener("ended", stop);
    video.srcObject = stream;
    await video.play();
    timer = setInterval(grab, FRAME_MS);
  }

  // The frames nearest to the middles of `count` equal parts of a time span, as data URLs; null if there are too few.
  function clip(from, to, count) {
    const frames = ring.filter((frame) => frame.time >= from - FRAME_MS && frame.time <= to + FRAME_MS);
    if (frames.length < count / 2) return null;
    const middles = Array.from({ length: count }, (_, i) => from + ((i + 0.5) * (to - from)) / count);
    const nearest = (time) =>
      frames.reduce((best, frame) => (Math.abs(frame.time - time) < Math.abs(best.time - time) ? frame : best));
    return Promise.all(middles.map((time) => toDataUrl(nearest(time).blob)));
  }

  // The clip of the last seconds; null if the camera has not been on for so long.
  function latest(length, count) {
    if (!ring.length || ring.at(-1).time - ring[0].time < length - 2 * FRAME_MS) return null;
    return clip(ring.at(-1).time - length, ring.at(-1).time, count);
  }

  return { start, stop, clip, latest, isOn: () => stream !== null };
}

function toDataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
