# For each line of input one request, and a line on how it went. usage: ruby client.rb HOST TOKEN
require "net/http"
$stdout.sync = true
host, token = ARGV
while $stdin.gets
  begin
    answer = Net::HTTP.start(host, 443, use_ssl: true, read_timeout: 60) do |http|
      http.get("/user", "Authorization" => "Bearer #{token}")
    end
    puts "#{answer.code} #{answer.body.split.join(' ')}"
  rescue StandardError => error
    puts "error #{error.class}: #{error.message.split.join(' ')}"
  end
end
