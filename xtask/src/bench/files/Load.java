import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.TreeMap;

/** Compiled, interpreted and native code, and a collector that has work. For ever. */
public class Load {
    static int fib(int n) {
        return n < 2 ? n : fib(n - 1) + fib(n - 2);
    }

    public static void main(String[] arguments) throws Exception {
        long kept = 0;
        Random random = new Random(1);
        while (true) {
            TreeMap<String, List<Integer>> map = new TreeMap<>();
            for (int i = 0; i < 60000; i++) {
                map.computeIfAbsent("k" + random.nextInt(5000), key -> new ArrayList<>()).add(i);
            }
            MessageDigest digest = MessageDigest.getInstance("SHA-256");
            digest.update(new byte[1 << 20]);
            kept += map.values().stream().mapToInt(List::size).sum() + fib(25) + digest.digest()[0];
            if (kept == 42) {
                System.out.println(kept);
            }
        }
    }
}
