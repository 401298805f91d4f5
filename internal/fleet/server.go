// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Limits of the server.
const (
	maxConns        = 1200 // every node has one, and a control node some more
	maxConnsPerHost = 40
	handshakeTime   = 5 * time.Second
	requestTime     = 15 * time.Second
	idleTimeout     = 5 * time.Minute
	reportBurst     = 60
	reportsPerSec   = 5
)

// Server takes the nodes' reports, and other control nodes.
type Server struct {
	store *Store
	rates rates
}

// NewServer serves a store.
func NewServer(store *Store) *Server {
	return &Server{store: store, rates: rates{burst: reportBurst, perSec: reportsPerSec}}
}

// Listen listens on the store's address. The address has to be there already.
func (s *Server) Listen(ctx context.Context) (net.Listener, error) {
	config := net.ListenConfig{Control: tuneSocket, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence, Interval: silence / 2, Count: 3}}
	return config.Listen(ctx, "tcp", s.store.o.Address)
}

// Serve serves until ctx ends, and closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	reports, joins := newQueue(listener.Addr()), newQueue(listener.Addr())
	servers := []*http.Server{s.httpServer(s.reportHandler()), s.httpServer(s.joinHandler())}
	var running sync.WaitGroup
	for i, queue := range []*queue{reports, joins} {
		running.Go(func() { _ = servers[i].Serve(queue) }) // it ends by Close
	}
	limits := connLimits{perHost: map[string]int{}}
	config := s.store.o.Keys.serverConfig(s.store.database)
	var err error
	for {
		var conn net.Conn
		if conn, err = listener.Accept(); err != nil {
			if failed := net.Error(nil); errors.As(err, &failed) && failed.Timeout() || !errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
				select { // out of descriptors, for example
				case <-time.After(100 * time.Millisecond):
					continue
				case <-ctx.Done():
				}
			}
			break
		}
		release, ok := limits.take(conn)
		if !ok {
			conn.Close()
			continue
		}
		running.Go(func() { s.welcome(ctx, &counted{Conn: conn, release: release}, config, reports, joins) })
	}
	for i, queue := range []*queue{reports, joins} {
		queue.Close()
		_ = servers[i].Close()
	}
	running.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// welcome does the handshake and hands the connection to whom it is for.
func (s *Server) welcome(ctx context.Context, raw net.Conn, config *tls.Config, reports, joins *queue) {
	conn := tls.Server(raw, config)
	shake, cancel := context.WithTimeout(ctx, handshakeTime)
	err := conn.HandshakeContext(shake)
	cancel()
	if err != nil {
		raw.Close()
		return
	}
	switch protocol := conn.ConnectionState().NegotiatedProtocol; {
	case protocol == protocolReport:
		reports.put(conn)
	case protocol == protocolJoin:
		joins.put(conn)
	default:
		if member, _, err := s.store.current(); err == nil {
			defer context.AfterFunc(ctx, func() { raw.Close() })()
			member.Serve(conn)
		}
		raw.Close()
	}
}

func (s *Server) httpServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler: handler, ReadHeaderTimeout: handshakeTime, ReadTimeout: requestTime, WriteTimeout: 2 * requestTime,
		IdleTimeout: idleTimeout, MaxHeaderBytes: 8 << 10,
		ErrorLog: log.New(io.Discard, "", 0),
	}
}

func (s *Server) reportHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/report", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(ctx context.Context, body io.Reader) (any, error) { return s.report(ctx, body) })
	})
	mux.HandleFunc("POST /v1/lease", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(ctx context.Context, body io.Reader) (any, error) {
			var lease Lease
			if err := decode(body, &lease); err != nil {
				return nil, &Refusal{Code: RefusedInvalid, Status: http.StatusBadRequest, Message: "cannot read the lease: " + err.Error()}
			}
			return struct{}{}, s.store.Lease(ctx, lease)
		})
	})
	return mux
}

func (s *Server) joinHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/join", func(w http.ResponseWriter, r *http.Request) {
		s.answer(w, r, func(ctx context.Context, body io.Reader) (any, error) {
			var request joinRequest
			if err := decode(body, &request); err != nil {
				return nil, &Refusal{Code: RefusedInvalid, Status: http.StatusBadRequest, Message: "cannot read the request to join: " + err.Error()}
			}
			return s.store.admit(ctx, request)
		})
	})
	return mux
}

// Local is for programs of this machine, over a socket that root alone may open.
func (s *Server) Local() http.Handler {
	mux := http.NewServeMux()
	local := func(pattern string, do func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			answer, err := do(r)
			reply(w, answer, err, s.store.o.Now())
		})
	}
	local("GET /v1/known", func(r *http.Request) (any, error) { return s.store.Known(r.Context()) })
	local("GET /v1/events", func(r *http.Request) (any, error) { return s.store.Events(r.Context(), r.URL.Query().Get("node")) })
	return mux
}

// report takes one report. One without anything new costs no write.
func (s *Server) report(ctx context.Context, body io.Reader) (Ack, error) {
	report, err := DecodeReport(body)
	if err != nil {
		return Ack{}, &Refusal{Code: RefusedInvalid, Status: http.StatusBadRequest, Message: clip(err.Error(), maxText)}
	}
	if report.Cluster != s.store.o.Keys.Cluster() {
		return Ack{}, &Refusal{Code: RefusedCluster, Status: http.StatusForbidden, Message: fmt.Sprintf("the report of %s is of another cluster", report.Node)}
	}
	return s.store.Append(ctx, report)
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, do func(ctx context.Context, body io.Reader) (any, error)) {
	now := s.store.o.Now()
	sender, _, _ := net.SplitHostPort(r.RemoteAddr)
	if !s.rates.allow(sender, s.store.o.Since()) {
		w.Header().Set("Connection", "close")
		reply(w, nil, &Refusal{Code: RefusedRate, Status: http.StatusTooManyRequests, Message: "too many requests of " + sender}, now)
		return
	}
	answer, err := do(r.Context(), http.MaxBytesReader(w, r.Body, maxBody))
	reply(w, answer, err, now)
}

func reply(w http.ResponseWriter, answer any, err error, now time.Time) {
	status := http.StatusOK
	if err != nil {
		refusal := &Refusal{Code: RefusedUnready, Message: clip(err.Error(), maxText), Status: http.StatusServiceUnavailable}
		if known := (*Refusal)(nil); errors.As(err, &known) {
			whole := *known
			refusal = &whole
		}
		refusal.Now = now.UTC()
		answer, status = refusal, refusal.Status
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // who asked has gone
}

// connLimits counts connections.
type connLimits struct {
	mutex   sync.Mutex
	all     int
	perHost map[string]int
}

func (l *connLimits) take(conn net.Conn) (release func(), ok bool) {
	host, _, _ := strings.Cut(conn.RemoteAddr().String(), "%")
	if at := strings.LastIndex(host, ":"); at >= 0 {
		host = host[:at]
	}
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.all >= maxConns || l.perHost[host] >= maxConnsPerHost {
		return nil, false
	}
	l.all++
	l.perHost[host]++
	return sync.OnceFunc(func() {
		l.mutex.Lock()
		defer l.mutex.Unlock()
		l.all--
		if l.perHost[host]--; l.perHost[host] == 0 {
			delete(l.perHost, host)
		}
	}), true
}

type counted struct {
	net.Conn
	release func()
}

func (c *counted) Close() error {
	c.release()
	return c.Conn.Close()
}

// queue is a listener of connections that were accepted already.
type queue struct {
	address net.Addr
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newQueue(address net.Addr) *queue {
	return &queue{address: address, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// put hides that it is TLS: net/http serves only protocols of TLS that it knows.
func (q *queue) put(conn net.Conn) {
	select {
	case q.conns <- struct{ net.Conn }{conn}:
	case <-q.closed:
		conn.Close()
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

func (q *queue) Addr() net.Addr { return q.address }
