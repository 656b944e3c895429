# An answer is { status:, headers:, body: }: what of it is recorded, and how it comes back byte for byte.
require 'json'
module IdempotencyPg
  # About the connection, the moment or the session: never replayed.
  PASSING = /\A(set-cookie|date|content-length|connection|transfer-encoding|keep-alive|server|idempotent-replayed)\z/i.freeze
  # What is meant to be text, so that the database and JSON take it.
  def self.utf8(text) = text.to_s.dup.force_encoding(Encoding::UTF_8).scrub.delete("\0")
  # The body is text or bytes, or a value that is made JSON. book.call(connection) writes beside the record of leased work.
  Answer = Struct.new(:status, :headers, :body, :book, :expires_at, keyword_init: true) do
    # Headers become pairs. Rack 2 has the lines of a repeated header in one string, Rack 3 in an array.
    def self.of(status: 200, headers: [], body: '', **more)
      pairs = headers.to_a.flat_map { |name, all| [*all].flat_map { |it| IdempotencyPg.utf8(it).split("\n") }.map { |line| [name, line] } }
      pairs << %w[Content-Type application/json] unless body.is_a?(String) || pairs.any? { |name, _| name.casecmp?('content-type') }
      new(status: status, headers: pairs, body: body.is_a?(String) ? body : JSON.generate(body), **more)
    end

    # As options of complete(): text where it is text, so that a person can read the row; bytes otherwise.
    def recorded
      kept = { response_status: status, response_headers: headers.grep_v(->((name, _)) { PASSING.match?(name) }) }
      text, of = IdempotencyPg.utf8(body), headers.to_h { |name, value| [name.downcase, value] }
      readable = body.encoding != Encoding::BINARY || %r{\Atext/|[/+](json|xml)\b}i.match?(of['content-type'])
      readable &&= !of['content-encoding'] && text.b == body.b
      kept.merge(body.empty? ? {} : readable ? { response_body: text } : { response_bytes: body })
    end
  end

  # Rolls back, and is answered, such as a 401 or a 422: Refused.new(status: 422, body: …). Of leased work it is an answer for good.
  class Refused < StandardError
    attr_reader :answer
    def initialize(answer) = super("refused with #{(@answer = Answer.of(**answer.to_h)).status}")
  end
end
