// As paths.c, by the JDK. A JVM uses IPv6 sockets for IPv4 unless java.net.preferIPv4Stack is set.
import java.io.IOException;
import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;

public class Paths {
    static String text(InetAddress address, int port) {
        String host = address.getHostAddress();
        return (host.contains(":") ? "[" + host + "]" : host) + ":" + port;
    }

    static void say(String line) {
        System.out.print(line);
        System.out.flush();
    }

    static void told(Socket socket, String seen) {
        say("open " + ProcessHandle.current().pid() + " " + text(socket.getLocalAddress(), socket.getLocalPort()) + " "
            + text(socket.getInetAddress(), socket.getPort()) + " " + seen);
    }

    static void blocking(InetSocketAddress to, boolean bind) throws IOException {
        Socket socket = new Socket();
        if (bind) socket.bind(new InetSocketAddress(to.getAddress(), 0));
        socket.connect(to, 20000);
        socket.setSoTimeout(20000);
        socket.getOutputStream().write("who\n".getBytes());
        StringBuilder seen = new StringBuilder();
        for (int c; (c = socket.getInputStream().read()) >= 0;) {
            seen.append((char) c);
            if (c == '\n') break;
        }
        told(socket, seen.toString());
    }

    static void selected(InetSocketAddress to) throws IOException {
        SocketChannel channel = SocketChannel.open();
        channel.configureBlocking(false);
        Selector selector = Selector.open();
        channel.register(selector, SelectionKey.OP_CONNECT);
        if (!channel.connect(to)) {
            selector.select(20000);
            if (!channel.finishConnect()) throw new IOException("ETIMEDOUT");
        }
        selector.close();
        channel.configureBlocking(true);
        channel.write(ByteBuffer.wrap("who\n".getBytes()));
        ByteBuffer seen = ByteBuffer.allocate(128);
        while (channel.read(seen) > 0 && seen.get(seen.position() - 1) != '\n') {}
        told(channel.socket(), new String(seen.array(), 0, seen.position()));
    }

    public static void main(String[] args) throws Exception {
        String method = args[0];
        int port = Integer.parseInt(args[3]);
        InetSocketAddress to = new InetSocketAddress(InetAddress.getByName(args[method.contains("IPv6") ? 2 : 1]), port);
        try {
            if (method.startsWith("UDP")) {
                DatagramSocket socket = new DatagramSocket();
                if (method.contains("connect")) socket.connect((java.net.SocketAddress) to);
                else socket.send(new DatagramPacket("quic".getBytes(), 4, to));
                say("sent\n");
            } else if (method.contains("non-blocking")) selected(to);
            else blocking(to, method.contains("bind"));
        } catch (IOException | java.io.UncheckedIOException error) {
            say("error " + (String.valueOf(error).contains("refused") ? "ECONNREFUSED" : error) + "\n");
        }
        while (System.in.read() >= 0) {}
    }
}
