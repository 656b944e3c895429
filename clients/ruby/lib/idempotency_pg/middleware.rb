# The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07) for Rack 2 and 3, after authentication. The connection of
# the claim's transaction is env['idempotency.db']. The answer leaves after COMMIT, so no client is told what was undone.
#   use IdempotencyPg::Middleware, pool: POOL, scope: ->(env) { … }, routes: { 'POST /orders/{id}/refunds' => {} }
require 'rack'
require 'stringio'
require 'time'
require_relative '../idempotency_pg'
module IdempotencyPg
  class Middleware
    # The draft has the first three titles. Who gets a Retry-After may send the same request again; nobody else is invited to.
    PROBLEMS = {
      missing: [400, 'Idempotency-Key is missing', 'This operation needs the header Idempotency-Key: one key for each intent.'],
      mismatch: [422, 'Idempotency-Key is already used', 'The key was used for another request, which may have taken effect.'],
      in_progress: [409, 'A request is outstanding for this Idempotency-Key', 'A request with this key is being processed.'],
      malformed: [400, 'Idempotency-Key is malformed', 'The header is one string of 1 to 255 printable ASCII characters: "k" or k.'],
      held: [409, 'The outcome for this Idempotency-Key is unknown', 'Whether the first request took effect is being looked into.'],
      redacted: [410, 'The answer for this Idempotency-Key is gone', 'The request was done, and its answer was removed.'],
      too_large: [500, 'The answer for this Idempotency-Key is too large', 'It cannot be recorded, and a repeat would fail again.'],
      unavailable: [503, 'Idempotency-Key cannot be checked now', 'Send the same request with the same key again later.']
    }.freeze
    ALSO = { failed: :unavailable, retry: :unavailable, wait_timeout: :in_progress, stale_claim: :in_progress }.freeze
    # RFC 8941: a string with its escapes, or a token, as many clients send it. Parameters are read over.
    STRING, TOKEN = /"((?:[ !#-\[\]-~]|\\["\\])*)"/, /[!#-+\--:<-~]+/
    ITEM = /\A[ \t]*(?:#{STRING}|(#{TOKEN}))(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:#{STRING}|#{TOKEN}))?)*[ \t]*\z/.freeze
    # Frameworks make a 500 of what a handler throws, and leave the error here: a serialization failure has to be run again.
    ERRORS = %w[sinatra.error action_dispatch.exception].freeze
    # With `work` a route is leased, and the application is not asked. state.call(env, body) is what the work needs; it may raise Refused.
    Route = Struct.new(:required, :wait, :ttl, :work, :state, :lease, :step, :hold_if_abandoned, keyword_init: true)
    # The key of the header, "k" and k alike; nil where it is none. Servers join two lines by a comma, which is in no token.
    def self.parse_key(line)
      key = ITEM.match(line.to_s.b)&.then { |match| match[2] || match[1].gsub(/\\(.)/, '\1') }
      IdempotencyPg.utf8(key) if key && (1..255).cover?(key.size)
    end

    def initialize(app, pool:, scope:, routes:, documentation: 'https://developer.example.com/idempotency', lifetime_header: false)
      @app, @pool, @scope, @documentation, @lifetime_header = app, pool, scope, documentation, lifetime_header
      @routes = routes.map do |template, options|
        operation = template.gsub(/:(\w+)/, '{\1}') # as Sinatra and Rails write it; a key is the same whatever language serves it
        pattern = Regexp.escape(operation).gsub(/\\{(\w+)\\}/, '(?<\1>[^/]+)')
        [%r{\A#{pattern}(?:\.\w+)?/?\z}, operation, Route.new(required: true, **options)]
      end
    end

    # Whatever routers overlook (/orders/, //orders, %6Frders, and for Rails /orders.json): there is no way around the claim.
    def call(env)
      path = "#{env['SCRIPT_NAME']}#{env['PATH_INFO']}".gsub(/%2f/i, '%252F') # a slash within a segment stays encoded
      asked = "#{env['REQUEST_METHOD']} #{IdempotencyPg.utf8(::Rack::Utils.unescape_path(path)).squeeze('/')}"
      @routes.each { |pattern, *route| pattern.match(asked) { |match| return respond(answer(env, *route, match.named_captures)) } }
      @app.call(env)
    end

    private

    def answer(env, operation, route, params)
      scope = @scope.call(env) or raise ArgumentError, 'scope gave nothing: authenticate before, or raise Refused.new(status: 401)'
      key = self.class.parse_key(line = env['HTTP_IDEMPOTENCY_KEY'])
      return problem(line ? :malformed : :missing) unless key || (line.nil? && !route.required && !route.work)
      id, request = Id.new(scope, operation, key), { body: body_of(env), params: params, ttl: route.ttl }
      if route.work
        options = { state: route.state&.call(env, request[:body]), **route.to_h.slice(:wait, :step, :lease, :hold_if_abandoned), **request }
        @pool.connection_pool.release_connection if @pool.respond_to?(:connection_pool) # of models that were asked who it is
        return told(IdempotencyPg.run_leased(@pool, id, route.work, **options))
      end
      original = env.dup
      IdempotencyPg.transaction(@pool) do |db|
        claimed = key && IdempotencyPg.capped(@pool, route.wait) { |most| IdempotencyPg.claim(db, id, wait: most, **request) }
        next told(claimed) unless claimed.nil? || claimed.claimed?
        env.replace(original) # it may be run again
        answer = captured(env.merge!('rack.input' => StringIO.new(request[:body]), 'idempotency.db' => db))
        raise Refused, answer if answer.status >= 500
        answer.expires_at = IdempotencyPg.complete(db, id, **answer.recorded) if key
        answer
      end
    rescue Refused => e
      e.answer
    rescue StandardError => e
      problem(IdempotencyPg.kind(e)) or raise # the framework's, as if this were not here
    end

    def told(result)
      return result if result.is_a?(Answer)
      return problem(result.outcome, result.retry_after_ms) unless result.outcome == :replay
      Answer.of(status: result.response_status || 200, headers: result.response_headers.to_a + [%w[Idempotent-Replayed true]],
                body: result.response_bytes || result.response_body.to_s.encode(Encoding::UTF_8), expires_at: result.expires_at)
    end

    def problem(name, retry_after_ms = nil)
      status, title, detail = PROBLEMS[name = ALSO.fetch(name, name)] || return
      headers = { 'Content-Type' => 'application/problem+json', 'Content-Language' => 'en',
                  'Link' => (%(<#{@documentation}>; rel="describedby"; type="text/html") if status == 400),
                  'Retry-After' => ([1, (retry_after_ms.to_i / 1000.0).ceil].max if %i[in_progress unavailable].include?(name)) }
      body = { type: "#{@documentation}##{name.to_s.tr('_', '-')}", title: title, status: status, detail: detail }
      Answer.of(status: status, headers: headers, body: body)
    end

    # All bytes of the body. Whoever has read them before has to leave them: an empty body would be taken for the request.
    def body_of(env)
      input = env['rack.input'] || StringIO.new
      input.rewind if input.respond_to?(:rewind)
      body = input.read.b
      body.bytesize < env['CONTENT_LENGTH'].to_i ? raise('the body was read before, and cannot be rewound') : body
    end

    # What the application answers, instead of sending it.
    def captured(env)
      status, headers, parts = @app.call(env)
      bytes = (Array.try_convert(parts) || parts.to_enum).map(&:b).join # by to_ary, as Rack 3 wants it, or by each
      error = env.values_at(*ERRORS).find { |one| IdempotencyPg.kind(one) != :other }
      error ? raise(error) : Answer.of(status: status.to_i, headers: headers, body: bytes)
    ensure
      env.delete('idempotency.db') # it is another's soon
      parts.close if parts.respond_to?(:close)
    end

    # Rack 3 has names in lower case and arrays, Rack 2 one string with all lines.
    def respond(answer)
      expires = [['Idempotency-Key-Expires', answer.expires_at.httpdate]] if @lifetime_header && answer.expires_at
      rack2 = ::Rack.release < '3'
      headers = [*answer.headers, *expires].group_by { |name, _| rack2 ? name : name.downcase }.transform_values do |lines|
        rack2 || lines.size == 1 ? lines.map(&:last).join("\n") : lines.map(&:last)
      end
      [answer.status, headers, answer.body.empty? ? [] : [answer.body]]
    end
  end
end
