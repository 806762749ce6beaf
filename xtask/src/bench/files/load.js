// Compiled, interpreted and native code; strings, objects and a collector that has work.
const fib = (n) => (n < 2 ? n : fib(n - 1) + fib(n - 2));
const objects = {};
for (let i = 0; i < 40; i++) {
  fib(30);
  for (let j = 0; j < 50000; j++) {
    objects["k" + (j % 997)] = JSON.stringify({ a: j, b: [1, 2, 3] });
  }
}
require("zlib").deflateSync(Buffer.alloc(8 << 20, "abcde"));
