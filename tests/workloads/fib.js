// Recursion that V8 compiles. `fib.js MS`
function fib(n) {
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}
const end = process.cpuUsage().user + 1000 * Number(process.argv[2]);
let sum = 0;
while (process.cpuUsage().user < end)
    sum += fib(27);
console.log(sum);
