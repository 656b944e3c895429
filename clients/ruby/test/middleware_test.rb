# The middleware by Rack: the header, problems, what is recorded, and that a handler may be run again.
require 'database'
require 'idempotency_pg/middleware'
require 'rack/lint'
require 'rack/mock'
require 'stringio'

class MiddlewareTest < Minitest::Test
  include Database

  def request(app, key = SecureRandom.uuid, body = '{"item": 1}', path: '/orders', **env)
    lint = Rack::Lint.new(app)
    headers = { 'CONTENT_TYPE' => 'application/json', 'HTTP_IDEMPOTENCY_KEY' => key, method: 'POST', input: body, 'PATH_INFO' => path, **env }.compact
    Rack::MockRequest.new(lint).request(headers.delete(:method), '/', headers)
  end

  def once(handler, routes: { 'POST /orders' => {} }, pool: POOL, **options)
    I::Middleware.new(Rack::Lint.new(handler), pool: pool, scope: ->(_) { 'test_ruby' }, routes: routes, **options)
  end

  TEXT = { 'content-type' => 'text/plain' }.freeze
  LINES = Rack.release < '3' ? "1\n2" : %w[1 2]

  # Answers with the item that it has inserted.
  ORDER = lambda do |env|
    item = JSON.parse(env['rack.input'].read)['item']
    env['idempotency.db'].exec_params('INSERT INTO test_ruby.orders (item) VALUES ($1)', [item])
    [201, { 'content-type' => 'application/json', 'set-cookie' => 'a=b', 'x-lines' => LINES }, [JSON.generate(item)]]
  end

  def test_the_header_is_a_string_of_rfc_8941_or_a_token
    { 'k' => 'k', '"k"' => 'k', ' "k" ' => 'k', '"k";p=1' => 'k', '"k"; a; b="x\\"y;z,"; c=?1' => 'k', 'k;p' => 'k', '"a\\"b"' => 'a"b',
      '"a\\\\b"' => 'a\\b', '"a,b c"' => 'a,b c', "\"#{'x' * 255}\"" => 'x' * 255, 'YWJj+/=' => 'YWJj+/=' }
      .each { |line, key| assert_equal(key, I::Middleware.parse_key(line), line) }
    ['', ' ', '""', '"', '"k', 'k"', '"a\\nb"', '"k" x', 'a, b', '"a", "b"', 'a b', 'ä', '"ä"', "\"a\tb\"", "k\n", 'x' * 256, '"k";P=1', '"k"p', "\xFF", nil]
      .each { |line| assert_nil(I::Middleware.parse_key(line), line.inspect) }
  end

  def test_an_answer_is_replayed_with_its_lines_and_without_its_cookie
    key, app = SecureRandom.uuid, once(ORDER, lifetime_header: true)
    first, again = request(app, key, '{"item": 90}'), request(app, "\"#{key}\"", '{"item": 90}')
    assert_equal([[201, '90', nil], [201, '90', 'true']], [first, again].map { |one| [one.status, one.body, one['Idempotent-Replayed']] })
    assert_equal([['a=b', nil], [LINES, LINES]], %w[set-cookie x-lines].map { |name| [first.headers[name], again.headers[name]] })
    assert_equal([first['Idempotency-Key-Expires']], [again['Idempotency-Key-Expires']])
    assert_operator(Time.httpdate(first['Idempotency-Key-Expires']), :>, Time.now)
    assert_equal(1, count(90))
  end

  def test_a_body_is_read_by_each_and_closed_also_one_that_only_seems_to_be_an_array_as_those_of_rails_do
    closed = 0
    body = Enumerator.new { |out| [+"caf\xE9", +'é'].each { |part| out << part } }
    body.define_singleton_method(:to_ary) { nil }
    body.define_singleton_method(:close) { closed += 1 }
    app = I::Middleware.new(->(_) { [200, TEXT.dup, body] }, pool: POOL, scope: ->(_) { 'test_ruby' }, routes: { 'POST /orders' => {} })
    key = SecureRandom.uuid
    assert_equal(["caf\xE9é".b] * 2, Array.new(2) { request(app, key).body.b })
    assert_equal(1, closed)
    around = ->(env) { app.call(env).tap { refute_includes(env, 'idempotency.db') } }
    request(around)
  end

  def test_problems
    app = once(ORDER, documentation: 'https://shop.example.com/keys')
    request(app, key = SecureRandom.uuid, '{"item": 91}')
    mismatch = request(app, key, '{"item": 92}')
    assert_equal([422, 'application/problem+json', nil], [mismatch.status, mismatch['Content-Type'], mismatch['Retry-After']])
    assert_equal({ 'type' => 'https://shop.example.com/keys#mismatch', 'title' => 'Idempotency-Key is already used', 'status' => 422 },
                 JSON.parse(mismatch.body).slice('type', 'title', 'status'))
    missing = request(app, nil, '{"item": 92}')
    assert_match(/\A<https:.*>; rel="describedby"; type="text\/html"\z/, missing['Link'])
    assert_equal([400, 'Idempotency-Key is missing'], [missing.status, JSON.parse(missing.body)['title']])
    WATCH.exec_params("SELECT idempotency.redact('test_ruby', 'POST /orders', $1)", [key])
    assert_equal(410, request(app, key, '{"item": 91}').status)
    gone = request(once(ORDER, pool: Database.pool(1, host: '127.0.0.1', port: 1)))
    assert_equal([503, '1'], [gone.status, gone['Retry-After']])
    assert_equal(0, count(92))
    optional = once(ORDER, routes: { 'POST /orders' => { required: false } })
    2.times { assert_equal(201, request(optional, nil, '{"item": 92}').status, 'without a key it is an ordinary request') }
    assert_equal(2, count(92))
  end

  def test_a_handler_is_run_again_though_its_framework_makes_a_500_of_the_error
    %w[sinatra.error action_dispatch.exception none].each_with_index do |name, i|
      runs, item = 0, 100 + i
      app = once(lambda do |env|
        env['X-Seen'] = (env['X-Seen'].to_i + 1).to_s
        ORDER.call(env)
        env['idempotency.db'].exec("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$") if (runs += 1) < 3
        [201, TEXT.dup, [env['X-Seen']]]
      rescue PG::Error => e
        raise if name == 'none'
        env[name] = e
        [500, TEXT.dup, ['a fault']]
      end)
      answer = request(app, SecureRandom.uuid, JSON.generate(item: item))
      assert_equal([201, '1', 3, 1], [answer.status, answer.body, runs, count(item)], 'on the environment of the first run')
    end
  end

  def test_what_is_thrown_or_a_5xx_is_rolled_back_and_a_swallowed_error_is_no_success
    key, item = SecureRandom.uuid, 0
    [->(_) { raise 'a fault' }, ->(_) { [500, TEXT.dup, []] }, ->(_) { raise I::Refused.new(status: 422) },
     ->(env) { env['idempotency.db'].exec('SELECT 1/0') rescue [200, TEXT.dup, ['fine']] }].each do |ending|
      app = once(->(env) { ORDER.call(env) && ending.call(env) })
      status = begin
        request(app, key, "{\"item\": #{item = 110}}").status
      rescue RuntimeError, PG::Error
        500
      end
      assert_includes([500, 422], status)
    end
    assert_equal(0, count(item))
    assert_equal(201, request(once(ORDER), key, '{"item": 110}').status, 'nothing was recorded')
  end

  def test_no_way_around_the_claim_and_none_into_it
    routes = { 'POST /orders/:id/refunds' => {} }
    seen = once(->(env) { [200, TEXT.dup, [(!env['idempotency.db'].nil?).to_s]] }, routes: routes)
    %w[/orders/7/refunds /orders/7/refunds/ //orders//7/refunds /orders/%37/refunds /%6Frders/7/refunds /orders/7/refunds.json /orders/a%2Fb/refunds]
      .each { |path| assert_equal('true', request(seen, path: path).body, path) }
    %w[/orders/refunds /orders/7/8/refunds /orders/7/refunds/9 /Orders/7/refunds].each { |path| assert_equal('false', request(seen, path: path).body, path) }
    assert_equal('false', request(seen, path: '/orders/7/refunds', method: 'PUT').body)
    key = SecureRandom.uuid
    assert_equal([200, 200, 422], %w[7 %37 8].map { |id| request(seen, key, path: "/orders/#{id}/refunds").status })
    raised(ArgumentError) { once(ORDER, routes: { 'POST /orders' => { laese: 1 } }) }
  end

  def test_a_body_that_was_read_before_is_not_taken_for_an_empty_one
    app = once(->(env) { [200, TEXT.dup, [env['rack.input'].read]] })
    early = ->(env) { env['rack.input'].read && app.call(env) }
    spent = ->(env) { app.call(env.merge('rack.input' => Struct.new(:read).new(''))) } # which Rack 3 need not rewind
    post = ->(which) { Rack::MockRequest.new(which).post('/orders', input: 'x', 'HTTP_IDEMPOTENCY_KEY' => SecureRandom.uuid) }
    assert_equal('x', post.call(early).body, 'it is rewound')
    assert_match(/read before/, raised(RuntimeError) { post.call(spent) }.message)
  end
end
