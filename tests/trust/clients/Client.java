import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.URL;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import javax.net.ssl.HttpsURLConnection;

/** For each line of input one request, and a line on how it went. usage: Client new|old HOST TOKEN */
final class Client {
    public static void main(String[] arguments) throws Exception {
        String url = "https://" + arguments[1] + "/user";
        String authorization = "Bearer " + arguments[2];
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        while (input.readLine() != null) {
            String line;
            try {
                line = arguments[0].equals("new") ? withHttpClient(url, authorization) : withUrl(url, authorization);
            } catch (Exception error) {
                line = "error " + error;
            }
            System.out.println(line.replaceAll("\\s+", " "));
        }
    }

    private static String withHttpClient(String url, String authorization) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url)).header("Authorization", authorization).build();
        HttpResponse<String> answer =
                HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        return answer.statusCode() + " " + answer.body();
    }

    private static String withUrl(String url, String authorization) throws Exception {
        HttpsURLConnection connection = (HttpsURLConnection) new URL(url).openConnection();
        connection.setRequestProperty("Authorization", authorization);
        int status = connection.getResponseCode();
        return status + " " + new String(connection.getInputStream().readAllBytes());
    }
}
