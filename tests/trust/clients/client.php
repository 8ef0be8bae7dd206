<?php
// For each line of input one request, and a line on how it went. usage: php client.php streams|curl HOST TOKEN
[, $library, $host, $token] = $argv;

function with_streams(string $url, string $header): array {
    $context = stream_context_create(["http" => ["header" => $header, "timeout" => 60]]);
    $body = @file_get_contents($url, false, $context);
    if ($body === false) {
        // The reason is told by warnings before the last one.
        throw new Exception(implode(" ", $GLOBALS["warnings"]));
    }
    return [explode(" ", $http_response_header[0])[1], $body];
}

function with_curl(string $url, string $header): array {
    $handle = curl_init($url);
    curl_setopt_array($handle, [CURLOPT_RETURNTRANSFER => true, CURLOPT_HTTPHEADER => [$header]]);
    $body = curl_exec($handle);
    if ($body === false) {
        throw new Exception(curl_error($handle));
    }
    return [curl_getinfo($handle, CURLINFO_RESPONSE_CODE), $body];
}

$warnings = [];
set_error_handler(function (int $level, string $text) {
    $GLOBALS["warnings"][] = $text;
    return true;
});
while (fgets(STDIN) !== false) {
    try {
        $ask = "with_$library";
        [$status, $body] = $ask("https://$host/user", "Authorization: Bearer $token");
        $line = "$status $body";
    } catch (Exception $error) {
        $line = "error " . $error->getMessage();
    }
    echo preg_replace('/\s+/', " ", $line), "\n";
}
