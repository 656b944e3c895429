# What the conformance service (../../conformance/spec.md) does, whatever the framework: SQL, the card network, the completer.
$LOAD_PATH.unshift(File.expand_path('../lib', __dir__))
require 'idempotency_pg/middleware'
require 'net/http'
require 'puma'
require 'puma/configuration'
require 'puma/launcher'
require 'securerandom'

module Shop
  POOL_SIZE = Integer(ENV.fetch('POOL_SIZE', 5))
  NETWORK = URI(ENV.fetch('NETWORK_URL'))
  TIMEOUT = Float(ENV.fetch('NETWORK_TIMEOUT', 2))
  THREADS = 80

  module_function

  def account(env)
    env['HTTP_AUTHORIZATION'].to_s[/\ABearer (\S+)\z/, 1] or raise IdempotencyPg::Refused.new(status: 401, body: { error: 'who is it?' })
  end

  # The body as a JSON object, with these members as whole numbers; anything else is the client's fault, found before any work.
  def parsed(body, *members)
    object = JSON.parse(body.dup.force_encoding('UTF-8'))
    return object if object.is_a?(Hash) && members.all? { |name| object[name].is_a?(Integer) }
    raise IdempotencyPg::Refused.new(status: 422, body: { error: "an object with #{members} is needed" })
  rescue JSON::ParserError
    raise IdempotencyPg::Refused.new(status: 422, body: { error: 'the body is no JSON' })
  end

  # POST /orders: the answer. insert.call(account, item) says the order's number.
  def order(env, body, insert)
    data = parsed(body, 'item')
    return { status: 402, body: { refused: true } } if env['HTTP_X_FAIL'] == 'refuse'
    id = insert.call(account(env), data['item'])
    sleep(data['pause_ms'].to_i / 1000.0)
    raise 'the handler was asked to throw' if env['HTTP_X_FAIL'] == 'throw'
    return { status: 503, body: { error: 'the handler was asked to answer so' } } if env['HTTP_X_FAIL'] == '503'
    { status: 201, body: { order: id }, headers: {
      'Location' => "/orders/#{id}", 'Link' => ['</a>; rel=a', '</b>; rel=b'], 'Set-Cookie' => "session=#{SecureRandom.uuid}",
      'X-Request' => SecureRandom.uuid } }
  end

  def blob_headers(env)
    { 'Content-Type' => env['CONTENT_TYPE'], 'Content-Encoding' => env['HTTP_CONTENT_ENCODING'] }.compact
  end

  def ask(request, timeout = nil)
    Net::HTTP.start(NETWORK.host, NETWORK.port, read_timeout: timeout, max_retries: 0) { |http| http.request(request) }
  rescue Errno::ECONNREFUSED
    raise IdempotencyPg::NothingHappened, 'the network cannot be reached'
  end

  # What a card is charged by; pay.call(connection, account, charge, amount) books it.
  def charge(pay)
    lambda do |job|
      account, amount = job.claim.state.values_at('account', 'amount')
      ask(Net::HTTP::Get.new("/before?key=#{job.effect_key}"))
      request = Net::HTTP::Post.new('/charges', 'Content-Type' => 'application/json')
      request.body = JSON.generate(key: job.effect_key, amount: amount)
      answer = ask(request, TIMEOUT)
      return { status: 402, body: { declined: true } } if answer.code == '402'
      raise "the network answered #{answer.code}: #{answer.body}" unless answer.code == '200'
      id = JSON.parse(answer.body)['charge']
      begin
        ask(Net::HTTP::Get.new("/after?key=#{job.effect_key}"))
      rescue StandardError
        # the charge is known
      end
      { status: 201, body: { charge: id }, book: ->(db) { pay.call(db, account, id, amount) } }
    end
  end

  # The middleware's options.
  def once(pool, work)
    leased = { lease: ENV.fetch('LEASE', '3 s'), step: 'charge' }
    Thread.new { IdempotencyPg.completer(pool, 'POST /charges', work, **leased, max_rows: 2, every: 0.5) }
    state = ->(env, body) { { account: account(env), amount: parsed(body, 'amount')['amount'] } }
    { pool: pool, scope: ->(env) { "shop:#{account(env)}" }, routes: {
      'POST /orders' => {}, 'POST /waiting-orders' => { wait: ENV.fetch('WAIT', '5 s') }, 'POST /orders/{id}/refunds' => {}, 'POST /blobs' => {},
      'POST /charges' => { work: work, state: state, hold_if_abandoned: false, **leased } } }
  end

  def serve(app)
    configuration = Puma::Configuration.new do |config|
      config.bind "tcp://127.0.0.1:#{ENV.fetch('PORT')}"
      config.threads THREADS, THREADS
      config.app app
    end
    launcher = Puma::Launcher.new(configuration)
    launcher.events.on_booted do
      puts 'listening'
      $stdout.flush
    end
    launcher.run
  end
end
