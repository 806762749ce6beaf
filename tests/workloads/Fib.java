/** Recursion that the JVM compiles. `java Fib.java MS` */
class Fib {
    static int fib(int n) {
        return n < 2 ? n : fib(n - 1) + fib(n - 2);
    }

    public static void main(String[] arguments) {
        long end = System.nanoTime() + 1_000_000 * Long.parseLong(arguments[0]);
        long sum = 0;
        while (System.nanoTime() < end)
            sum += fib(30);
        System.out.println(sum);
    }
}
